"""Which parts each format has, which columns play them, and what to tell a user whose columns fit none."""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Literal, NamedTuple

from smollit.data.formats.types import Kind

FormatName = Literal["auto", "messages", "prompt_completion", "sharegpt", "alpaca", "text", "dialogue", "preference"]
Parts = dict[str, str]  # part -> column
SCORES = ("score_chosen", "score_rejected")


class Layout(NamedTuple):
    """The parts that a format needs, and those that it may have."""

    needs: tuple[str, ...]
    may: tuple[str, ...] = ()


# In the order of precedence: of the formats that fit, the first is taken.
LAYOUTS: dict[Kind, dict[FormatName, Layout]] = {
    "chat": {
        "sharegpt": Layout(("messages",), ("system",)),
        "messages": Layout(("messages",), ("system",)),
        "prompt_completion": Layout(("prompt", "completion"), ("system",)),
        "alpaca": Layout(("instruction", "output"), ("input", "system")),
        "dialogue": Layout(("text",), ("system",)),
        "text": Layout(("text",)),
    },
    "preference": {
        "dialogue": Layout(("chosen", "rejected"), ("prompt", "system", *SCORES)),
        "preference": Layout(("chosen", "rejected"), ("prompt", "system", *SCORES)),
    },
}
# The columns that play a part without a mapping: the first of these that is there, else the one of the part's name.
USUAL = {"messages": ("messages", "conversations", "conversation")}
NEEDED = {
    "chat": "`messages` (or `conversations`), `prompt` and `completion`, `instruction` and `output`, or `text`",
    "preference": "`chosen` and `rejected`",
}
PLURAL = {"chat": "chats", "preference": "preference pairs"}
MODULES = {"chat": "UltraChatDataModule", "preference": "UltraFeedbackDataModule"}


def parts_of(kind: Kind, name: FormatName) -> tuple[str, ...]:
    """All parts that a format knows."""
    layout = LAYOUTS[kind][name]
    return layout.needs + layout.may


def read_mapping(mapping: dict[str, str], columns: list[str], where: str) -> Parts:
    """The user's mapping, in which `conversations` is another name of the part `messages`.

    Raises:
        ValueError: If it names a part or a column that does not exist.
    """
    known = sorted({part for kind in LAYOUTS for name in LAYOUTS[kind] for part in parts_of(kind, name)})
    wanted = {"messages" if part == "conversations" else part: column for part, column in mapping.items()}
    for part, column in wanted.items():
        if part not in known:
            raise ValueError(f"`data.columns` has the key {part!r}, which must be one of {', '.join(known)}")
        if column and column not in columns:
            near = get_close_matches(column, columns, cutoff=0.4) or columns
            raise ValueError(
                f"`data.columns` takes `{part}` from the column {column!r}, which {where} does not have."
                f" Nearest: {listed(near)}"
            )
    return wanted


def find_parts(kind: Kind, columns: list[str], wanted: Parts) -> Parts:
    """Which column plays which part; a part that is mapped to "" is not used."""
    parts = {}
    for part in dict.fromkeys(part for name in LAYOUTS[kind] for part in parts_of(kind, name)):
        usual = next((name for name in USUAL.get(part, (part,)) if name in columns), "")
        parts[part] = wanted.get(part, usual)
    return {part: column for part, column in parts.items() if column}


def fitting(kind: Kind, columns: list[str], wanted: Parts) -> list[FormatName]:
    """The formats whose needs are met and that know all parts of the mapping, best first."""
    parts = find_parts(kind, columns, wanted)
    return [
        name
        for name, layout in LAYOUTS[kind].items()
        if parts.keys() >= set(layout.needs) and wanted.keys() <= set(parts_of(kind, name))
    ]


def why_not(columns: list[str], kind: Kind, format: FormatName, wanted: Parts, where: str) -> str:
    """What to tell a user when no format fits."""
    if format != "auto" and format not in LAYOUTS[kind]:
        names = ", ".join(LAYOUTS[kind])
        return f"`data.format` is {format}, but {PLURAL[kind]} have the formats {names}{_hint(columns, kind, wanted)}"
    asked = [format] if format != "auto" else list(LAYOUTS[kind])
    if not any(wanted.keys() <= set(parts_of(kind, name)) for name in asked):
        return f"`data.columns` maps {listed(list(wanted))}, and none of the formats {listed(asked)} has all of these"
    needed = f"{PLURAL[kind]} need {NEEDED[kind]}"
    if format != "auto":
        needed = f"`data.format: {format}` needs " + " and ".join(f"`{part}`" for part in LAYOUTS[kind][format].needs)
    mapping = f" with `data.columns` {wanted}" if wanted else ""
    hint = _hint(columns, kind, wanted) or ". Say with `data.columns` which column plays which part"
    return f"{where} has the columns {listed(columns)}, but {needed}{mapping}{hint}"


def listed(names: Sequence[str], most: int = 12) -> str:
    """Names with commas; of many, the first."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "(none)") + more


def _hint(columns: list[str], kind: Kind, wanted: Parts) -> str:
    other: Kind = "preference" if kind == "chat" else "chat"
    return f". These are {PLURAL[other]}: use {MODULES[other]}" if fitting(other, columns, wanted) else ""
