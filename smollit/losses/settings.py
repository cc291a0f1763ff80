"""`model.loss` as settings: short names, the plain form in checkpoints, and settings of version 0.1."""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from importlib import import_module
from inspect import isabstract
from typing import Any

import smollit.losses as shipped
from smollit.losses.base import CompletionLoss, PreferenceLoss

Loss = PreferenceLoss | CompletionLoss
Settings = dict[str, Any]
FAMILIES: tuple[type[Loss], ...] = (PreferenceLoss, CompletionLoss)
# TRL's names.
ALIASES = {
    "sigmoid": "DPO",
    "sigmoid_norm": "LNDPO",
    "exo_pair": "EXO",
    "nca_pair": "NCA",
    "bco_pair": "BCO",
    "sppo_hard": "SPPO",
    "aot_unpaired": "AOTUnpaired",
    "apo_zero": "APOZero",
    "apo_down": "APODown",
}
# Settings of the module in version 0.1 that are now arguments of the loss.
MOVED = ("beta", "label_smoothing", "nll_weight", "scores", "score_scale")


def loss_class(name: str, families: tuple[type[Loss], ...] = FAMILIES) -> type[Loss]:
    """The class that a short name, in any case, or a class_path means.

    Args:
        name: The name.
        families: Base classes of the losses that the module takes.

    Raises:
        ValueError: If there is no such loss.
    """
    known = {found.__name__.lower(): found for base in families for found in _subclasses(base)}
    found = known.get(ALIASES.get(name.lower(), name).lower())
    if found is None and "." in name:
        module, _, attribute = name.rpartition(".")
        try:
            found = getattr(import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"`model.loss` is {name}, which can't be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, families)):
        names = ", ".join(sorted(cls.__name__ for cls in known.values()))
        raise ValueError(f"`model.loss` is {name}: expected one of {names}, or the class_path of your own loss")
    return found


def preference_loss(value: PreferenceLoss | str | Settings) -> PreferenceLoss:
    """A loss of the DPO family, from an instance, its name, or its settings as a checkpoint stores them.

    Raises:
        ValueError: If it is no such loss.
    """
    loss = _as_loss(value)
    if not isinstance(loss, PreferenceLoss):
        raise ValueError(f"`model.loss` of DPO must be a PreferenceLoss, got {type(loss).__name__}")
    return loss


def completion_loss(value: CompletionLoss | str | Settings) -> CompletionLoss:
    """A loss of the SFT family, from an instance, its name, or its settings as a checkpoint stores them.

    Raises:
        ValueError: If it is no such loss.
    """
    loss = _as_loss(value)
    if not isinstance(loss, CompletionLoss):
        raise ValueError(f"`model.loss` of SFT must be a CompletionLoss, got {type(loss).__name__}")
    return loss


def _as_loss(value: Loss | str | Settings) -> Loss:
    if isinstance(value, str):
        return loss_class(value)()
    if not isinstance(value, dict):
        return value
    arguments = {name: _from_plain(argument) for name, argument in value.get("init_args", {}).items()}
    return loss_class(value["class_path"])(**arguments)


def _from_plain(argument: Any) -> Any:
    """An argument of a loss; the losses of a sum are a list of settings."""
    if isinstance(argument, list | tuple):
        return [_as_loss(each) if isinstance(each, dict) else each for each in argument]
    return argument


def as_settings(loss: Loss) -> Settings:
    """The plain form of a loss: {"class_path": ..., "init_args": {...}}."""
    arguments = {field.name: _to_plain(getattr(loss, field.name)) for field in fields(loss)}
    return {"class_path": class_path(type(loss)), "init_args": arguments}


def _to_plain(argument: Any) -> Any:
    if isinstance(argument, list | tuple):
        return [as_settings(each) if isinstance(each, FAMILIES) else each for each in argument]
    return argument


def class_path(loss: type) -> str:
    """Path to import a loss from."""
    is_shipped = vars(shipped).get(loss.__name__) is loss
    return f"{shipped.__name__ if is_shipped else loss.__module__}.{loss.__qualname__}"


def defaults(loss: type[Loss]) -> Settings:
    """Default of each argument of a loss that has one."""
    return {field.name: field.default for field in fields(loss) if field.default is not MISSING}


def named_loss(
    given: Any, before: Mapping[str, Any] | None, families: tuple[type[Loss], ...] = FAMILIES
) -> tuple[Any, Settings]:
    """Settings of a loss as the user names it, and the earlier arguments that no longer apply.

    Naming a different loss than before uses the defaults of that loss, and drops the arguments of the other one.

    Args:
        given: A name, or {class_path, init_args}; anything else is returned as it is.
        before: The loss that was chosen before, from a configuration file or by default.
        families: Base classes of the losses that the module takes.

    Returns:
        The settings with the full class_path, and the arguments of `before` that were not defaults and are dropped.
    """
    name = given.get("class_path") if isinstance(given, Mapping) else given
    if not isinstance(name, str):
        return given, {}
    new = loss_class(name, families)
    arguments = dict(given.get("init_args") or {}) if isinstance(given, Mapping) else {}
    if isinstance(arguments.get("losses"), list):  # the parts of a sum
        arguments["losses"] = [named_loss(part, None, families)[0] for part in arguments["losses"]]
    settings = {"class_path": class_path(new), "init_args": defaults(new) | arguments}
    if before is None:
        return settings, {}
    old = loss_class(before["class_path"])
    if old is new:
        return settings | {"init_args": arguments}, {}
    return settings, {key: value for key, value in before.get("init_args", {}).items() if value != defaults(old)[key]}


def from_version_0_1(settings: Mapping[str, Any]) -> Settings:
    """Settings of a module of version 0.1, with those that are now arguments of its loss moved into `loss`.

    Settings of later versions are returned as they are.
    """
    moved = {key: settings[key] for key in MOVED if key in settings}
    name = settings.get("loss", "sigmoid")
    if not moved or not isinstance(name, str):
        return dict(settings)
    loss = loss_class(name)
    arguments = {key: value for key, value in moved.items() if key in defaults(loss)}
    rest = {key: value for key, value in settings.items() if key not in MOVED}
    return rest | {"loss": {"class_path": class_path(loss), "init_args": arguments}}


def upgraded(config: Mapping[str, Any]) -> Settings:
    """A run's settings in a checkpoint, {"model": {"class_path", "init_args"}, ...}, in the current spelling."""
    model = config.get("model")
    if not isinstance(model, Mapping) or "init_args" not in model:
        return dict(config)
    return {**config, "model": {**model, "init_args": from_version_0_1(model["init_args"])}}


def moved_settings(settings: Mapping[str, Any]) -> str:
    """The error message for settings of version 0.1, with the new spelling to paste."""
    loss = from_version_0_1(settings)["loss"]
    named = ", ".join(f"`model.{key}`" for key in MOVED if key in settings)
    yaml = [f"        {key}: {value}" for key, value in loss["init_args"].items()]
    words = [f"--model.loss.{key} {value}" for key, value in loss["init_args"].items()]
    name = loss["class_path"].rpartition(".")[2]
    return "\n".join(
        [
            f"{named} moved into `model.loss`. In YAML, below `model.init_args`, write",
            "    loss:",
            f"      class_path: {loss['class_path']}",
            *(["      init_args:", *yaml] if yaml else []),
            f"On the command line: {' '.join([f'--model.loss {name}', *words])}",
        ]
    )


def _subclasses(base: type) -> list[type]:
    """All classes below a base that can be instantiated and are imported."""
    found: list[type] = base.__subclasses__()
    return [sub for direct in found for sub in (direct, *_subclasses(direct)) if not isabstract(sub)]
