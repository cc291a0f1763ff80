"""How a setting of another tool becomes one of smollit: conversions of names and values."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, Literal, NamedTuple

from smollit.losses.base import PreferenceLoss
from smollit.losses.settings import LOSS

Settings = dict[str, Any]  # of smollit, by the names that a user types: {"model.learning_rate": 1e-5}
Given = Mapping[str, Any]  # all settings of the other tool, its defaults too
Convert = Callable[[Any, Given], Settings]  # a ValueError is the reason why there is no counterpart
Method = Literal["SFT", "DPO"]
LINEAR_LAYERS = ("all-linear", "all_linear", "all")


Kind = Literal["mapped", "no counterpart", "default of theirs", "not in the file"]


class Line(NamedTuple):
    """One setting of the other tool.

    Args:
        kind: What became of it.
        name: Its name and value.
        result: The settings that it became, or why there are none.
    """

    kind: Kind
    name: str
    result: str


class Nearest(Exception):
    """A setting without a counterpart, where others come near to it: they are written, and the reason is said."""

    def __init__(self, settings: Settings, reason: str) -> None:
        super().__init__(reason)
        self.settings = settings


class Tool(NamedTuple):
    """Another tool.

    Args:
        name: Its name.
        keys: Keys that only its configs have: some of them tell the tool.
        table: Its settings as smollit's.
        method: The method that its settings ask for; a ValueError if smollit has none.
        defaults: Its defaults that are not smollit's, for given settings: they are written out.
        reasons: Why a setting has no counterpart, where the common reasons don't say it.
    """

    name: str
    keys: frozenset[str]
    table: Mapping[str, Convert]
    method: Callable[[Given], Method]
    defaults: Callable[[Given], Settings]
    reasons: Mapping[str, str] = {}


def number(value: Any) -> float:
    """A number, also one that YAML reads as a text, such as 1e-5.

    Raises:
        ValueError: If it is none, such as `auto`.
    """
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"expected a number, got {value}") from None


def whole(value: Any) -> int:
    """A number without a fraction.

    Raises:
        ValueError: If it is none.
    """
    found = number(value)
    if not found.is_integer():
        raise ValueError(f"expected a whole number, got {value}")
    return int(found)


def to(name: str, change: Callable[[Any], Any] = lambda value: value) -> Convert:
    """The setting of another name, perhaps with another value."""
    return lambda value, given: {name: change(value)}


def flag(name: str, value: Any) -> Convert:
    """A switch of theirs that is a value of ours."""
    return lambda given_value, given: {name: value} if is_on(given_value) else {}


def is_on(value: Any) -> bool:
    """Whether a switch is on."""
    return value is True or str(value).lower() in ("true", "auto", "1")


def positive(name: str) -> Convert:
    """A number that counts only above 0: -1 and 0 mean that there is no limit."""
    return lambda value, given: {name: value} if value and number(value) > 0 else {}


def every(name: str) -> Convert:
    """An interval in steps; a fraction of the run has no counterpart."""

    def convert(value: Any, given: Given) -> Settings:
        if 0 < number(value) < 1:
            raise ValueError("an interval as a fraction of the run has no counterpart: give steps")
        return {name: whole(value)}

    return convert


# ---- adapters


def targets(value: Any, given: Given) -> Settings:
    """Names of layers; all linear ones are smollit's default."""
    if value in LINEAR_LAYERS or is_on(given.get("lora_target_linear")):
        return {}
    names = [name.strip() for name in value.split(",")] if isinstance(value, str) else list(value)
    if not all(name.isidentifier() for name in names):
        raise ValueError("`model.adapter.targets` takes names of layers, such as [q_proj, v_proj]")
    return {"model.adapter.targets": names}


def vocabulary(value: Any, given: Given) -> Settings:
    """Other weights that are trained in full: the embeddings and the head, or none."""
    names = value.split(",") if isinstance(value, str) else list(value)
    if {name.strip() for name in names} - {"embed_tokens", "lm_head", "wte"}:
        raise ValueError("beside the adapter, only the embeddings and the head can be trained in full")
    return {"model.adapter.vocabulary": True} if names else {}


def lora(given: Given) -> str:
    """The kind of LoRA that switches ask for."""
    rank_stabilized = is_on(named(given, "use_rslora", "peft_use_rslora"))
    has_magnitude = is_on(named(given, "use_dora", "peft_use_dora"))
    if rank_stabilized and has_magnitude:
        raise ValueError("DoRA with rank stabilization: `model.adapter: Peft` with peft.LoraConfig takes both")
    return "RSLoRA" if rank_stabilized else "DoRA" if has_magnitude else "LoRA"


def if_adapter(convert: Convert, is_trained: Callable[[Given], bool]) -> Convert:
    """A setting of an adapter, where there is one."""

    def checked(value: Any, given: Given) -> Settings:
        if value is False:
            return {}
        if not is_trained(given):
            raise ValueError("it has no effect there: no adapter is trained")
        return convert(value, given)

    return checked


# ---- losses


def loss_argument(name: str, losses: Callable[[Given], list[str]]) -> Convert:
    """An argument of those losses that take it."""

    def convert(value: Any, given: Given) -> Settings:
        names = losses(given)
        if not any(takes(each, name) for each in names):
            raise ValueError(f"it has no effect on `model.loss: {' + '.join(names)}`")
        return {f"model.loss.{name}": number(value)}

    return convert


def of_chats(name: str, method: Callable[[Given], Method]) -> Convert:
    """A switch for the part of chats that the loss counts; of pairs it is always the responses."""

    def convert(value: Any, given: Given) -> Settings:
        if value and method(given) == "DPO":
            raise ValueError("the loss of pairs counts both responses, and nothing else")
        return {"data.train_on": name} if value else {}

    return convert


def smoothing(losses: Callable[[Given], list[str]]) -> Convert:
    """transformers' label smoothing, which is of cross-entropy."""

    def convert(value: Any, given: Given) -> Settings:
        if value and losses(given) != ["NLL"]:
            raise ValueError(f"it has no effect there: `model.loss` is {' + '.join(losses(given))}, not cross-entropy")
        return {"model.loss.label_smoothing": number(value)} if value else {}

    return convert


def dft(losses: Callable[[Given], list[str]]) -> Convert:
    """A switch for DFT, which is a loss of completions."""

    def convert(value: Any, given: Given) -> Settings:
        if is_on(value) and losses(given) != ["DFT"]:
            raise ValueError("it has no effect there: it is a loss of completions")
        return {"model.loss": "DFT"} if is_on(value) else {}

    return convert


def if_reference(convert: Convert, losses: Callable[[Given], list[str]]) -> Convert:
    """A setting of the reference, where the loss has one."""

    def checked(value: Any, given: Given) -> Settings:
        found = [LOSS.make(name) for name in losses(given)]
        if not any(isinstance(loss, PreferenceLoss) and loss.needs_reference for loss in found):
            raise ValueError(f"it has no effect there: `model.loss: {' + '.join(losses(given))}` has no reference")
        return convert(value, given)

    return checked


def takes(loss: str, argument: str) -> bool:
    """Whether a loss has an argument."""
    return argument in {entry.name for entry in fields(LOSS.find(loss))}


def losses_of(names: list[str]) -> Settings:
    """One loss, or the sum of several."""
    if len(names) == 1:
        return {"model.loss": names[0]}
    return {"model.loss": "Sum", "model.loss.losses": names}


def named(given: Given, *names: str) -> Any:
    """The value of the first name that is given."""
    return next((given[name] for name in names if given.get(name) is not None), None)
