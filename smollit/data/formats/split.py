"""Split: what is known of a split before its format, and which formats fit it."""

import json
from dataclasses import dataclass
from typing import Any

from smollit.data.formats.format import LABELS, LAYOUTS, MEDIA, TOGETHER, USUAL, Parts, parts_of
from smollit.data.formats.messages import (
    ALIASES,
    DIALOGUE,
    DIALOGUE_TURN,
    ROLES,
    WRITTEN_MESSAGES,
    Roles,
    from_columns,
    printed_by_python,
)
from smollit.data.formats.ranking import Ranking
from smollit.data.formats.types import Kind, Message
from smollit.data.sources.columns import JOIN, heads, value_at
from smollit.data.sources.files import Row
from smollit.data.sources.mixture import FormatName

MESSAGES = ("messages", "prompt", "completion", "chosen", "rejected")  # parts that may be messages
# Columns of pairs that hold the prompt where there is no `prompt`, and the responses come alone.
PROMPT_LIKE = (
    f"instruction{JOIN}input",
    "instruction",
    "input",
    "messages",
    "conversations",
    "conversation",
    "history",
)


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
        is_input = "input" in self.columns and not {"instruction", "prompt"} & {*self.columns, *self.mapping}
        if kind == "chat" and is_input and not parts["prompt"]:
            parts["prompt"], parts["completion"] = "input", parts["completion"] or parts["output"]
        if kind == "preference":
            parts["completion"] = parts["completion"] or next(filter(self.columns.__contains__, USUAL["output"]), "")
            parts["prompt"] = parts["prompt"] or self._prompt_of_pairs(parts)
            parts["chosen_if"] = parts["chosen_if"] or self._chosen_if_label()
        return {part: column for part, column in parts.items() if column}

    def _prompt_of_pairs(self, parts: Parts) -> str:
        """The columns of the prompt of responses that come alone, where no column has the usual name."""
        column = parts["chosen"] or next(iter(heads(parts["responses"])), "")
        found = [value if isinstance(value, list) and parts["responses"] else [value] for value in self.values(column)]
        responses = [value for values in found for value in values]
        if "prompt" in self.mapping or not all(map(is_response_alone, responses)):
            return ""
        known = (name for name in PROMPT_LIKE if all(column in self.columns for column in heads(name)))
        is_needed = responses or (not parts["chosen"] and parts["completion"])
        return next(known, "") if is_needed else ""

    def _chosen_if_label(self) -> str:
        """What makes a response a good one in data with a label of true and false."""
        label = self.mapping.get("label") or next(filter(self.is_label, LABELS), "")
        return f"highest {self.is_true(label)}" if label and self.mapping.get("label") != "" else ""

    def is_true(self, label: str) -> str:
        """The expression for a label that is true; in CSV files, true and false are texts."""
        is_text = any(isinstance(value, str) for value in self.values(label))
        return f"lower({label}) in ['true', '1']" if is_text else label

    def list_of_responses(self) -> str:
        """The first column of lists of texts or objects, which may be responses; empty if there is none."""
        for column in self.columns:
            value = next(iter(self.values(column)), None)
            is_messages = any("role" in message or "from" in message for message in find_messages(value))
            if isinstance(value, list) and len(value) > 1 and not is_messages:
                return column
        return ""

    def is_label(self, column: str) -> bool:
        """Whether a column holds true and false, or 1 and 0."""
        values = self.values(column)
        return bool(values) and all(str(value).lower() in ("true", "false", "1", "0") for value in values)

    def fitting(self, kind: Kind) -> list[FormatName]:
        """The formats whose needs are met and that have all parts of the mapping, best first."""
        parts = self.parts(kind)
        asked = self.mapping.keys() - {"label", *MEDIA}
        return [
            name
            for name, layout in LAYOUTS[kind].items()
            if parts.keys() >= set(layout.needs) and asked <= set(parts_of(kind, name))
            if parts.keys() >= any_of_needs(name, parts)
        ]

    def used_parts(self, name: FormatName) -> Parts:
        """The parts of a format that have a column, without those that say something only beside another one.

        Raises:
            ValueError: If the user's mapping has such a part alone.
        """
        found = self.parts(self.kind)
        parts = {part: found[part] for part in parts_of(self.kind, name) if part in found}
        lone = {part: pair for pair in TOGETHER for part in pair if part in parts and not parts.keys() >= set(pair)}
        for part in filter(self.mapping.__contains__, lone):
            raise ValueError(f"`data.columns` maps {part} alone: map both {' and '.join(lone[part])}, or neither")
        return {part: column for part, column in parts.items() if part not in lone}

    def unused(self, parts: Parts, filtered: set[str]) -> tuple[str, ...]:
        """The columns that no part, no filter and no setting uses."""
        used = {name.split(".")[0] for column in parts.values() for name in (column, *heads(column))} | filtered
        if "chosen_if" in parts:
            used |= Ranking(parts["chosen_if"]).expression.names
        return tuple(column for column in self.columns if column not in used | set(parts.values()))

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

    def values(self, column: str) -> list[Any]:
        """The values of a column that are not null."""
        values = [value_at(row, column) for row in self.rows]
        return [value for value in values if value is not None]

    def messages(self, parts: Parts) -> list[Message]:
        """All objects in these parts that may be messages."""
        columns = [name for part, column in parts.items() if part in MESSAGES for name in heads(column)]
        return [message for column in columns for value in self.values(column) for message in find_messages(value)]


def any_of_needs(name: FormatName, parts: Parts) -> set[str]:
    """The parts of which a format needs all, where there is a choice."""
    if name == "unpaired":
        return {"messages"} if "messages" in parts else {"prompt", "completion"}
    if name == "thread":
        return {"id", "parent"} if {"id", "parent"} <= parts.keys() else {"thread"}
    return set()


def is_response_alone(value: Any) -> bool:
    """Whether a response comes without the turns before it."""
    if isinstance(value, str) and not WRITTEN_MESSAGES.match(value):
        return not is_dialogue(value)
    return len(find_messages(value)) == 1


def find_messages(value: Any) -> list[Message]:
    """The objects in a value of the first rows, whose format is not known yet, that may be messages; without nulls."""
    if isinstance(value, str) and WRITTEN_MESSAGES.match(value):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = printed_by_python(value)
    value = from_columns(value)
    found = value if isinstance(value, list) else [value]
    return [
        {key: item for key, item in message.items() if item is not None}
        for message in found
        if isinstance(message, dict)
    ]


def is_sharegpt(message: Message, extra: tuple[str, ...]) -> bool:
    """Whether a message without nulls has ShareGPT's keys, or one of its names of roles."""
    role = message.get("role")
    if role is None:
        return isinstance(message.get("from"), str)
    known = isinstance(role, str) and role not in ROLES and role not in extra
    return known and role.strip().lower() in ALIASES


def is_dialogue(text: object) -> bool:
    """Whether a value is a text that begins with a turn and contains the assistant's name."""
    return isinstance(text, str) and bool(DIALOGUE.match(text)) and "Assistant" in DIALOGUE_TURN.findall(text)
