"""Null or an empty text where a value is expected: jsonargparse accepts it, and the class would fail much later."""

import inspect
from collections.abc import Mapping
from contextlib import suppress
from pydoc import locate
from types import NoneType
from typing import Any, get_args, get_type_hints

from jsonargparse import Namespace

from smollit.cli.wording.words import expected

# Settings that name a place, and where a parsed config has them.
PLACES = {
    "ckpt_path": "ckpt_path",
    "model.model_name": "model.init_args.model_name",
    "trainer.default_root_dir": "trainer.default_root_dir",
}


def check_places(config: Namespace) -> None:
    """Refuse the empty name that a shell gives for a variable that is not set: it would mean the current folder; and
    a variable in a config, which would be the name of a folder.

    Raises:
        ValueError: Names the setting.
    """
    for name, key in PLACES.items():
        if config.get(key) == "":
            raise ValueError(f"`{name}` is empty: give a name or a path")
        if str(config.get(key)).startswith("$"):
            raise ValueError(
                f"`{name}` is {config[key]}, and a config expands no variables: write the path, or give the setting on"
                " the command line, where the shell does"
            )


def check_nulls(value: Any, where: str) -> None:
    """Refuse a null where a class expects a value, in a class of the config and in all classes inside it.

    Args:
        value: A section of the config, or a part of it: `{class_path, init_args}`, a list, a mapping, or a plain value.
        where: The setting, for the error.

    Raises:
        ValueError: Names the setting and what it must be.
    """
    if isinstance(value, list):
        for item in value:
            check_nulls(item, where)
    if not isinstance(value, Mapping):
        return
    settings = value.get("init_args") or {} if "class_path" in value else value
    found = locate(str(value.get("class_path")))
    if isinstance(found, type):
        check_settings(found, settings, where)
    for name, inner in settings.items():
        check_nulls(inner, f"{where}.{name}")


def check_settings(known: type, settings: Mapping[str, Any], where: str) -> None:
    """Refuse a null among the arguments of one class.

    Raises:
        ValueError: Names the setting and what it must be.
    """
    for name in (name for name, value in settings.items() if value is None):
        hint = next((hint for base in known.__mro__ if (hint := _hint(base, name)) is not None), None)
        if hint not in (None, Any, NoneType) and NoneType not in get_args(hint):
            raise ValueError(f"`{where}.{name}` can't be null: expected {expected(str(hint))}")


def _hint(base: type, name: str) -> Any:
    """Type of an argument of a class's own `__init__`; None if it has none, or null as its default all the same."""
    init = vars(base).get("__init__")
    if init is None or name not in (arguments := inspect.signature(init).parameters):
        return None
    with suppress(NameError, TypeError):  # a name that is imported for type checkers only
        return Any if arguments[name].default is None else get_type_hints(init).get(name)
    return None
