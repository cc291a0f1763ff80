"""How a setting of another tool becomes one of smollit: conversions of names and values."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

Settings = dict[str, Any]  # of smollit, by the names that a user types: {"model.learning_rate": 1e-5}
Convert = Callable[[Any], Settings]
SCHEDULES = {
    "linear": "Linear",
    "cosine": "Cosine",
    "cosine_with_min_lr": "Cosine",
    "constant": "Constant",
    "constant_with_warmup": "Constant",
    "inverse_sqrt": "InverseSqrt",
    "warmup_stable_decay": "WSD",
}
NO_NEED = "smollit has no need of it"


class Tool(NamedTuple):
    """Another tool.

    Args:
        name: Its name.
        keys: Keys that only its configs have: some of them tell the tool.
        table: Its settings as smollit's; None for one without counterpart.
        reasons: Why there is none.
        defaults: Its defaults that are not smollit's: they are written out.
    """

    name: str
    keys: frozenset[str]
    table: Mapping[str, Convert | None]
    reasons: Mapping[str, str]
    defaults: Mapping[str, Any]


def to(name: str, change: Callable[[Any], Any] = lambda value: value) -> Convert:
    """The setting of another name, perhaps with another value."""
    return lambda value: {name: change(value)}


def schedule(value: Any) -> Settings:
    """A schedule by its name in transformers.

    Raises:
        ValueError: If smollit has no such schedule.
    """
    if value not in SCHEDULES:
        raise ValueError(f"there is no schedule {value}")
    return {"model.schedule": SCHEDULES[value]}


def flag(name: str, value: Any) -> Convert:
    """A switch of theirs that is a value of ours."""
    return lambda given: {name: value} if given in (True, "auto", "true") else {}


def four_bits(value: Any) -> Settings:
    """A number of bits of the frozen weights.

    Raises:
        ValueError: If it is not 4.
    """
    if value != 4:
        raise ValueError("the frozen weights are stored in 4 bits or as they are: `model.quantize`")
    return {"model.quantize": "nf4-dq"}


def positive(name: str) -> Convert:
    """A number that counts only above 0: -1 and 0 mean that there is no limit."""
    return lambda value: {name: value} if value and value > 0 else {}


def epochs(value: Any) -> Settings:
    """A number of epochs.

    Raises:
        ValueError: If it is a fraction: smollit counts whole ones.
    """
    if value != int(value):
        raise ValueError("a part of an epoch has no counterpart: set `trainer.max_steps`")
    return {"trainer.max_epochs": int(value)}


def loss(value: Any) -> Settings:
    """A loss by TRL's name; several are a sum."""
    names = value if isinstance(value, list) else [value]
    if len(names) == 1:
        return {"model.loss": names[0]}
    return {"model.loss": "Sum", "model.loss.losses": [{"class_path": name} for name in names]}


def optimizer(name: str) -> Convert:
    """A setting of torch's AdamW."""
    return lambda value: {f"model.optimizer.{name}": value}


def every(name: str) -> Convert:
    """An interval in steps; a fraction of the run has no counterpart.

    Raises:
        ValueError: If it is a fraction.
    """

    def convert(value: Any) -> Settings:
        if isinstance(value, float) and value < 1:
            raise ValueError("an interval as a fraction of the run has no counterpart: give steps")
        return {name: int(value)}

    return convert


def splits(name: str) -> Convert:
    """A fraction or number of rows that is held out for validation, as a slice of the training split."""

    def convert(value: Any) -> Settings:
        if not value:
            return {"data.val_split": None}
        size = f"{round(100 * value)}%" if value < 1 else str(int(value))
        return {"data.train_split": f"{name}[{size}:]", "data.val_split": f"{name}[:{size}]"}

    return convert
