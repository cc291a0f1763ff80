"""Choice: a setting that names a class with arguments of its own, such as `model.loss` and `model.schedule`."""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from difflib import get_close_matches
from importlib import import_module
from inspect import isabstract
from types import ModuleType
from typing import Any

Settings = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The classes that a setting may name: frozen dataclasses, by short name in any case, or by class_path.

    Args:
        setting: Name of the setting, for errors.
        families: Base classes of what it may name.
        shipped: Module that holds smollit's own classes.
        aliases: Other short names, in lower case, and the class that each means.
        nested: Name of an argument that is a list of such objects.
        foreign: Base classes of other libraries, whose classes are accepted by class_path and left to the parser.
    """

    setting: str
    families: tuple[type, ...]
    shipped: ModuleType
    aliases: Mapping[str, str] = field(default_factory=dict)
    nested: str = ""
    foreign: tuple[type, ...] = ()

    def find(self, name: str, families: tuple[type, ...] | None = None) -> type:
        """The class that a short name, in any case, or a class_path means.

        Args:
            name: The name.
            families: Base classes of what is allowed here; null allows all.

        Raises:
            ValueError: If there is no such class.
        """
        families = families or self.families
        known = {found.__name__.lower(): found for base in families for found in _subclasses(base)}
        found = known.get(self.aliases.get(name.lower(), name).lower())
        if found is None and "." in name:
            module, _, attribute = name.rpartition(".")
            try:
                found = getattr(import_module(module), attribute)
            except (ImportError, AttributeError) as error:
                raise ValueError(f"`{self.setting}` is {name}, which can't be imported: {error}") from error
        if not (isinstance(found, type) and issubclass(found, (*families, *self.foreign))):
            names = ", ".join(sorted(cls.__name__ for cls in known.values()))
            near = get_close_matches(name.lower(), known, n=1, cutoff=0.7)
            hint = f". Did you mean `{known[near[0]].__name__}`?" if near else ""
            raise ValueError(
                f"`{self.setting}` is {name}: expected one of {names}, or the class_path of your own{hint}"
            )
        return found

    def make(self, value: Any) -> Any:
        """An object from its name, or from its settings as a checkpoint stores them; an object stays as it is."""
        if isinstance(value, str):
            return self.find(value)()
        if not isinstance(value, dict):
            return value
        is_class = isinstance(value.get("class_path"), str) and isinstance(value.get("init_args", {}), dict)
        if not is_class or value.keys() - {"class_path", "init_args"}:
            raise ValueError(f"`{self.setting}` is {value}: expected {{'class_path': ..., 'init_args': {{...}}}}")
        arguments = dict(value.get("init_args", {}))
        if self.nested in arguments:
            arguments[self.nested] = [self.make(part) for part in arguments[self.nested]]
        named = self.find(value["class_path"])
        try:
            return named(**arguments)
        except TypeError as error:
            raise ValueError(f"`{self.setting}`: {named.__name__} can't be made of {arguments}: {error}") from error

    def as_settings(self, value: Any) -> Settings:
        """The plain form of an object: {"class_path": ..., "init_args": {...}}."""
        arguments = {entry.name: getattr(value, entry.name) for entry in fields(value)}
        if self.nested in arguments:
            arguments[self.nested] = [self.as_settings(part) for part in arguments[self.nested]]
        return {"class_path": self.class_path(type(value)), "init_args": arguments}

    def class_path(self, named: type) -> str:
        """Path to import a class from."""
        is_shipped = vars(self.shipped).get(named.__name__) is named
        return f"{self.shipped.__name__ if is_shipped else named.__module__}.{named.__qualname__}"

    def named(
        self, given: Any, before: Mapping[str, Any] | None, families: tuple[type, ...] | None = None
    ) -> tuple[Any, Settings]:
        """Settings of what the user names, and the earlier arguments that no longer apply.

        Naming a different class than before uses the defaults of that class, and drops the arguments of the other one.

        Args:
            given: A name, or {class_path, init_args}; anything else is returned as it is.
            before: What was chosen before, from a configuration file or by default.
            families: Base classes of what is allowed here; null allows all.

        Returns:
            The settings with the full class_path, and the arguments of `before` that were not defaults and are dropped.
        """
        name = given.get("class_path") if isinstance(given, Mapping) else given
        if not isinstance(name, str):
            return given, {}
        new = self.find(name, families)
        if issubclass(new, self.foreign):
            return given, {}
        arguments = dict(given.get("init_args") or {}) if isinstance(given, Mapping) else {}
        if isinstance(arguments.get(self.nested), list):
            arguments[self.nested] = [self.named(part, None, families)[0] for part in arguments[self.nested]]
        settings = {"class_path": self.class_path(new), "init_args": defaults(new) | arguments}
        if before is None or "class_path" not in before:
            return settings, {}
        old = self.find(before["class_path"])
        if old is new:
            return settings | {"init_args": arguments}, {}
        if issubclass(old, self.foreign):
            return settings, {}
        return settings, {
            key: value for key, value in before.get("init_args", {}).items() if value != defaults(old).get(key)
        }


def defaults(named: Any) -> Settings:
    """Default of each argument of a dataclass that has one."""
    return {entry.name: entry.default for entry in fields(named) if entry.default is not MISSING}


def _subclasses(base: type) -> list[type]:
    """All classes below a base that can be instantiated and are imported."""
    found: list[type] = base.__subclasses__()
    return [sub for direct in found for sub in (direct, *_subclasses(direct)) if not isabstract(sub)]
