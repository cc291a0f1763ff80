"""Which format a split has: detected from its columns and first rows, or given by the user; errors if none fits."""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from smollit.data.formats.format import LAYOUTS, SCORES, Format, Parts, listed, parts_of
from smollit.data.formats.messages import (
    ALIASES,
    ROLES,
    WRITTEN_MESSAGES,
    Roles,
    find_messages,
    is_dialogue,
    is_sharegpt,
)
from smollit.data.formats.types import Kind, Message
from smollit.data.sources.files import Row
from smollit.data.sources.mixture import FormatName

# The columns of a part without a mapping: the first of these that is there, else the one of the part's name.
USUAL = {"messages": ("messages", "conversations", "conversation")}
MESSAGES = ("messages", "prompt", "completion", "chosen", "rejected")  # parts that may be messages
PROMPT_LIKE = ("question", "instruction", "query", "input", "conversations", "messages")
NEEDED = {
    "chat": "`messages` (or `conversations`), `prompt` and `completion`, `instruction` and `output`, or `text`",
    "preference": "`chosen` and `rejected`",
}
PLURAL = {"chat": "chats", "preference": "preference pairs"}
MODULES = {"chat": "UltraChatDataModule", "preference": "UltraFeedbackDataModule"}


def detect_format(
    columns: list[str],
    rows: list[Row],
    *,
    kind: Kind,
    format: FormatName = "auto",
    mapping: dict[str, str] | None = None,
    extra_roles: Iterable[str] = (),
    where: str = "the data set",
) -> Format:
    """The format of a split.

    Args:
        columns: Names of its columns.
        rows: Its first rows, which distinguish ShareGPT from messages, and dialogues from other texts.
        kind: What its rows must become.
        format: The format that the user wants, or `auto`.
        mapping: {part: column} for columns that are not named after their part; "" for a part not to be used.
        extra_roles: Roles that messages may have besides system, user, assistant and tool.
        where: Name of the split in errors.

    Raises:
        ValueError: If no format fits, with the columns, what each format needs, and what to do.
    """
    split = Split(
        kind=kind,
        columns=columns,
        rows=rows,
        mapping=_read_mapping(mapping or {}, columns, where),
        extra_roles=tuple(extra_roles),
        where=where,
    )
    fits = split.fitting(kind)
    if format == "auto":
        name = next((name for name in fits if split.looks_like(name)), None)
    else:
        name = format if format in fits else None
    if name is None:
        raise ValueError(split.why_not(format))
    used = split.used_parts(name)
    if kind == "preference":
        split.check_prompt(used)
    as_sharegpt = name == "sharegpt" or (name != "messages" and split.is_sharegpt(used))
    roles = Roles(split.extra_roles, sharegpt=as_sharegpt)
    unused = tuple(column for column in columns if column not in used.values())
    return Format(name, kind, used, roles=roles, seen=split.renamed_roles(used, roles), unused=unused)


@dataclass(frozen=True, kw_only=True)
class Split:
    """What is known of a split before its format: its columns and first rows, and the user's settings.

    Args:
        kind: What its rows must become.
        columns: Names of its columns.
        rows: Its first rows.
        mapping: The user's {part: column}.
        extra_roles: The user's further roles.
        where: Its name in errors.
    """

    kind: Kind
    columns: list[str]
    rows: list[Row]
    mapping: Parts
    extra_roles: tuple[str, ...]
    where: str

    # ---- columns

    def parts(self, kind: Kind) -> Parts:
        """The column of each part of any format; a part that is mapped to "" is not used."""
        parts = {}
        for part in dict.fromkeys(part for name in LAYOUTS[kind] for part in parts_of(kind, name)):
            usual = next((name for name in USUAL.get(part, (part,)) if name in self.columns), "")
            parts[part] = self.mapping.get(part, usual)
        return {part: column for part, column in parts.items() if column}

    def fitting(self, kind: Kind) -> list[FormatName]:
        """The formats whose needs are met and that have all parts of the mapping, best first."""
        parts = self.parts(kind)
        return [
            name
            for name, layout in LAYOUTS[kind].items()
            if parts.keys() >= set(layout.needs) and self.mapping.keys() <= set(parts_of(kind, name))
        ]

    def used_parts(self, name: FormatName) -> Parts:
        """The parts of a format that have a column, without a score that has no other score beside it."""
        found = self.parts(self.kind)
        parts = {part: found[part] for part in parts_of(self.kind, name) if part in found}
        lone = [part for part in SCORES if part in parts] if not parts.keys() >= set(SCORES) else []
        if lone and lone[0] in self.mapping:
            raise ValueError(f"`data.columns` maps {lone[0]} alone: map both {' and '.join(SCORES)}, or neither")
        return {part: column for part, column in parts.items() if part not in lone}

    # ---- first rows

    def looks_like(self, name: FormatName) -> bool:
        """Whether the first rows agree with a format that fits the columns."""
        parts = self.parts(self.kind)
        if name == "sharegpt":
            return self.is_sharegpt({"messages": parts["messages"]})
        if name == "dialogue":
            texts = [text for text in self.values(parts["text" if self.kind == "chat" else "chosen"]) if text != ""]
            return 2 * sum(map(is_dialogue, texts)) > len(texts)
        return True

    def is_sharegpt(self, parts: Parts) -> bool:
        """Whether a message of these parts has ShareGPT's keys or names of roles."""
        return any(is_sharegpt(message, self.extra_roles) for message in self.messages(parts))

    def renamed_roles(self, parts: Parts, roles: Roles) -> tuple[str, ...]:
        """Names of roles that are read as others, in the order in which they come."""
        if not roles.sharegpt:
            return ()
        names = [message.get(roles.keys(message)[0]) for message in self.messages(parts)]
        kept = (*ROLES, *roles.extra)
        known = [name for name in names if isinstance(name, str) and name not in kept]
        return tuple(dict.fromkeys(name for name in known if name.strip().lower() in ALIASES))

    def check_prompt(self, parts: Parts) -> None:
        """Reject pairs at once whose responses come alone while no column holds the prompt."""
        responses = self.values(parts["chosen"])
        alone = [value for value in responses if _is_response_alone(value)]
        likely = next((name for name in PROMPT_LIKE if name in self.columns), "question")
        if "prompt" not in parts and alone and len(alone) == len(responses):
            raise ValueError(
                f"{self.where} has the columns {listed(self.columns)}: `{parts['chosen']}` holds responses without"
                " their prompt, and there is no `prompt`. Name its column, such as"
                f" `data.columns: {{prompt: {likely}}}`"
            )

    def values(self, column: str) -> list[Any]:
        """The values of a column that are not null."""
        return [row[column] for row in self.rows if row.get(column) is not None]

    def messages(self, parts: Parts) -> list[Message]:
        """All objects in these parts that may be messages."""
        columns = [column for part, column in parts.items() if part in MESSAGES]
        return [message for column in columns for value in self.values(column) for message in find_messages(value)]

    # ---- errors

    def why_not(self, format: FormatName) -> str:
        """Why no format fits, or not the one that the user wants."""
        kind, mapping = self.kind, self.mapping
        if format != "auto" and format not in LAYOUTS[kind]:
            names = ", ".join(LAYOUTS[kind])
            return f"`data.format` is {format}, but {PLURAL[kind]} have the formats {names}{self._hint()}"
        asked = [format] if format != "auto" else list(LAYOUTS[kind])
        if not any(mapping.keys() <= set(parts_of(kind, name)) for name in asked):
            return (
                f"`data.columns` maps {listed(list(mapping))}, and none of the formats {listed(asked)} has all of these"
            )
        needed = f"{PLURAL[kind]} need {NEEDED[kind]}"
        if format != "auto":
            parts = " and ".join(f"`{part}`" for part in LAYOUTS[kind][format].needs)
            needed = f"`data.format: {format}` needs {parts}"
        mapped = f" with `data.columns` {mapping}" if mapping else ""
        hint = self._hint() or ". Map parts to columns with `data.columns`"
        return f"{self.where} has the columns {listed(self.columns)}, but {needed}{mapped}{hint}"

    def _hint(self) -> str:
        other: Kind = "preference" if self.kind == "chat" else "chat"
        return f". These are {PLURAL[other]}: use {MODULES[other]}" if self.fitting(other) else ""


def _read_mapping(mapping: dict[str, str], columns: list[str], where: str) -> Parts:
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
                f"`data.columns` maps `{part}` to the column {column!r}, which {where} does not have."
                f" Nearest: {listed(near)}"
            )
    return wanted


def _is_response_alone(value: Any) -> bool:
    if isinstance(value, str) and not WRITTEN_MESSAGES.match(value):
        return not is_dialogue(value)
    return len(find_messages(value)) == 1
