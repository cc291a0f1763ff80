"""Split: what is known of a split before its format, and which formats fit it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from smollit.data.formats.detection.labels import LABELS, is_good, is_label
from smollit.data.formats.format import LAYOUTS, MEDIA, OPTIONAL, TOGETHER, USUAL, Parts, parts_of
from smollit.data.formats.messages.dialogue import is_dialogue
from smollit.data.formats.messages.roles import ALIASES, ROLE_KEYS, ROLES, TEXT_KEYS, Roles, is_role, is_sharegpt
from smollit.data.formats.messages.shapes import find_messages, is_written
from smollit.data.formats.ranking import Ranking
from smollit.data.formats.types import Kind, Message
from smollit.data.sources.columns import JOIN, heads, value_at
from smollit.data.sources.files import Row
from smollit.data.sources.mixture import FormatName

MESSAGES = ("messages", "prompt", "completion", "chosen", "rejected")  # parts that may be messages
# Columns of pairs that hold the prompt where there is no `prompt`, and the responses come alone.
PROMPT_LIKE = (
    "input.messages",  # OpenAI's, beside `input.tools`
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
        of_kind = dict.fromkeys(part for name in LAYOUTS[kind] for part in parts_of(kind, name))
        mapped = {part: column for part, column in self.mapping.items() if part in of_kind}
        parts = {part: self.named(USUAL.get(part, (part,))) for part in of_kind} | mapped
        parts |= self._inferred(kind, parts) | mapped
        prompt = parts["prompt"]  # the column of the prompt is no other part too
        return {part: column for part, column in parts.items() if column and (part == "prompt" or column != prompt)}

    def named(self, names: Sequence[str]) -> str:
        """The first free column with one of these names, in whatever case; empty if there is none."""
        by_lower = {column.lower(): column for column in reversed(self._free)}
        found = [*filter(self._free.__contains__, names), *(by_lower[name] for name in names if name in by_lower)]
        return next(iter(found), "")

    @cached_property
    def _free(self) -> list[str]:
        """The columns that the user maps to no part: those that are mapped are no other part too."""
        taken = {name for part, column in self.mapping.items() if part != "chosen_if" for name in heads(column)}
        return [column for column in self.columns if column not in taken]

    def _inferred(self, kind: Kind, parts: Parts) -> Parts:
        """The columns of parts for which no column has the usual name."""
        completion = parts["completion"] or self.named(USUAL["output"])
        if kind == "preference":
            prompt = parts["prompt"] or self._prompt_of_pairs(parts)
            tools = "input.tools" if prompt == "input.messages" and self.values("input.tools") else ""
            return {
                "completion": completion,
                "prompt": prompt,
                "tools": parts["tools"] or tools,
                "chosen_if": parts["chosen_if"] or self._chosen_if_label(),
            }
        if parts["instruction"]:
            completion = parts["completion"]
        prompt = parts["prompt"] or ("" if parts["instruction"] else self.named(["input"]))
        is_known = (prompt and completion) or (parts["instruction"] and parts["output"]) or parts["text"]
        messages = parts["messages"] or ("" if is_known else self._column_of_messages(parts))
        return {"prompt": prompt, "completion": completion, "messages": messages}

    def _column_of_messages(self, parts: Parts) -> str:
        """The only column that holds messages, whatever its name; empty if there is none."""
        known = {*parts.values(), *USUAL["chosen"], *USUAL["rejected"]}
        found = [column for column in self.columns if column not in known and self._holds_messages(column)]
        return found[0] if len(found) == 1 else ""

    def _holds_messages(self, column: str) -> bool:
        found = [find_messages(value) for value in self.values(column)]
        return bool(found) and all(messages and all(map(self._is_message, messages)) for messages in found)

    def _is_message(self, message: Message) -> bool:
        """Whether an object has the role of a chat, and a text."""
        role = next((message[key] for key in ROLE_KEYS if key in message), None)
        return is_role(role, self.extra_roles) and bool(message.keys() & set(TEXT_KEYS))

    def _prompt_of_pairs(self, parts: Parts) -> str:
        """The columns of the prompt of responses that come alone, where no column has the usual name."""
        column = parts["chosen"] or next(iter(heads(parts["responses"])), "")
        found = [value if isinstance(value, list) and parts["responses"] else [value] for value in self.values(column)]
        responses = [value for values in found for value in values]
        if "prompt" in self.mapping or not all(map(is_response_alone, responses)):
            return ""
        known = (name for name in PROMPT_LIKE if all(map(self._is_there, heads(name))))
        is_needed = responses or (not parts["chosen"] and parts["completion"])
        return next(known, "") if is_needed else ""

    def _is_there(self, name: str) -> bool:
        """Whether a column, or what a dotted path leads to, is in the first rows."""
        return name in self._free or ("." in name and bool(self.values(name)))

    def _chosen_if_label(self) -> str:
        """What makes a response a good one in data with a label of true and false."""
        label = self.label()
        return f"highest {is_good(label, self.values(label))}" if label else ""

    def label(self) -> str:
        """The column that says of each completion whether it is a good one; empty if there is none."""
        named = (self.named([name]) for name in LABELS)
        return self.mapping.get("label", next((name for name in named if name and is_label(self.values(name))), ""))

    def list_of_responses(self) -> str:
        """The first column of lists of texts or objects, which may be responses; empty if there is none."""
        for column in self.columns:
            value = next(iter(self.values(column)), None)
            is_messages = any("role" in message or "from" in message for message in find_messages(value))
            if isinstance(value, list) and len(value) > 1 and not is_messages:
                return column
        return ""

    @property
    def asked(self) -> set[str]:
        """The parts that the user maps to a column."""
        return {part for part, column in self.mapping.items() if column} - {"label", *MEDIA}

    def fitting(self, kind: Kind) -> list[FormatName]:
        """The formats whose needs are met and that have all parts of the mapping, best first."""
        parts = self.parts(kind)
        return [
            name
            for name, layout in LAYOUTS[kind].items()
            if parts.keys() >= set(layout.needs) and self.asked <= set(parts_of(kind, name))
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

    def late_parts(self, name: FormatName, used: Parts) -> dict[str, tuple[str, ...]]:
        """The names that columns of optional parts usually have, where the first rows have none of them."""
        taken = {*self.columns, *used.values(), *self.mapping}
        parts = [
            part for part in OPTIONAL if part in LAYOUTS[self.kind][name].may and part not in {*used, *self.mapping}
        ]
        return {part: tuple(column for column in USUAL.get(part, (part,)) if column not in taken) for part in parts}

    def unused(self, parts: Parts, filtered: set[str]) -> tuple[str, ...]:
        """The columns that no part, no filter and no setting uses, without those that the user maps to nothing."""
        used = {name.split(".")[0] for column in parts.values() for name in (column, *heads(column))} | filtered
        if "chosen_if" in parts:
            used |= {
                name for path in Ranking(parts["chosen_if"]).expression.names for name in (path, path.split(".")[0])
            }
        used |= {*parts.values(), *(name for name, column in self.mapping.items() if not column)}
        return tuple(column for column in self.columns if column not in used)

    # ---- first rows

    def looks_like(self, name: FormatName) -> bool:
        """Whether the first rows agree with a format that fits the columns."""
        parts = self.parts(self.kind)
        if name == "sharegpt":
            return self.is_sharegpt({"messages": parts["messages"]})
        if name == "thread":
            return parts["role"].lower() == "role" or self.holds_roles(parts["role"])
        if name == "dialogue":
            wanted = ("text",) if self.kind == "chat" else ("chosen", "prompt")
            return any(self._holds_dialogues(parts[part]) for part in wanted if part in parts)
        return True

    def holds_roles(self, column: str) -> bool:
        """Whether a column holds nothing but names of roles."""
        values = self.values(column)
        return bool(values) and all(is_role(value, self.extra_roles) for value in values)

    def _holds_dialogues(self, column: str) -> bool:
        texts = [text for text in self.values(column) if text != ""]
        return 2 * sum(map(is_dialogue, texts)) > len(texts)

    def is_sharegpt(self, parts: Parts) -> bool:
        """Whether a message of these parts has ShareGPT's keys or names of roles."""
        return any(is_sharegpt(message, self.extra_roles) for message in self.messages(parts))

    def renamed_roles(self, parts: Parts, roles: Roles) -> tuple[str, ...]:
        """Names of roles that are read as others, in the order in which they come."""
        if not roles.sharegpt:
            return ()
        names = [message.get(roles.keys(message)[0]) for message in self.messages(parts)]
        known = [name for name in names if isinstance(name, str) and name not in (*ROLES, *roles.extra)]
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
    if isinstance(value, str) and not is_written(value):
        return not is_dialogue(value)
    return len(find_messages(value)) == 1
