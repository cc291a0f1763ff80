"""Columns that no part uses, and what the chats lack of them. Rendering with and without a column decides."""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from smollit.commands.inspect.compare import Compared, rendered
from smollit.data.encoding.encoder import Encoder
from smollit.data.encoding.report import fraction
from smollit.data.formats.format import USUAL, Format
from smollit.data.formats.groups import GROUP
from smollit.data.formats.types import Record, Text
from smollit.data.template.rendering.jinja import read_variables

SHORTEST_LOST = 20  # characters of a text, in a column that is left alone, that may be an error
MIN_WEIGHT = 0.1  # characters of such a column per character of the chats
OTHER_CHATS = (*USUAL["chosen"], *USUAL["rejected"], *USUAL["messages"])  # where one of these is used, it is enough
# Columns whose texts belong into the chat, wherever they are there.
MEANINGFUL = (
    "history",
    "context",
    "documents",
    "functions",
    "input",
    "system",
    "system_prompt",
    "reasoning",
    "reasoning_content",
    "thinking",
    "tools",
)


class LeftAlone(NamedTuple):
    """A column that no part uses, and what the rendered chats lack of it.

    Args:
        name: Its name.
        rows: Rows whose chats lack a text or a number of it.
        longest: Characters of the longest of these.
        has_words: Whether one of these has several words.
        weight: Characters that are lacking for each character of the chats; of copies of the chat, 0.
        is_read: Whether the template renders another text when it gets the column.
        is_partly_used: Whether a part is a path into it, so that the user has seen what it holds.
    """

    name: str
    rows: int
    longest: int
    has_words: bool
    weight: float
    is_read: bool
    is_partly_used: bool = False

    @property
    def is_wrong(self) -> bool:
        """Whether so much should not be lacking."""
        if self.is_partly_used:
            return False
        is_heavy = self.has_words and self.longest >= SHORTEST_LOST and self.weight >= MIN_WEIGHT
        return self.is_read or (is_heavy and self.name not in OTHER_CHATS) or self.name.lower() in MEANINGFUL

    def sentence(self, total: int) -> str:
        """What is lacking, in how many of all compared rows, and what to do."""
        start = f"the column `{self.name}` is not used" + (" as a whole" if self.is_partly_used else "")
        if self.is_read:
            return (
                f"{start}, and the chat template prints it where it gets it: `data.convert` can put it into"
                " `chat_template_kwargs` of each row"
            )
        return (
            f"{start}, and has texts of up to {self.longest:,} characters in"
            f" {fraction(self.rows, total, 'compared rows')} that the chats lack: `data.columns` can map it to a part,"
            f" or to nothing, {{{self.name}: ''}}"
        )


def left_alone(compared: list[Compared], encoder: Encoder) -> tuple[list[str], list[str]]:
    """Sentences about the columns that are left alone: those that are likely errors, and the others.

    Columns of single words and numbers, such as identifiers, share one sentence.
    """
    found = columns_left_alone(compared, encoder)
    wrong = [column for column in found if column.is_wrong]
    short = [column for column in found if column not in wrong and not column.has_words]
    notes = [column.sentence(len(compared)) for column in found if column not in wrong and column not in short]
    if short:
        rows = fraction(max(column.rows for column in short), len(compared), "compared rows")
        names = ", ".join(f"`{column.name}`" for column in short)
        notes.append(
            f"columns that are not used, and whose values the chats lack, in up to {rows}: {names}. `data.where` can"
            " choose rows by them"
        )
    return [column.sentence(len(compared)) for column in wrong], notes


def columns_left_alone(compared: list[Compared], encoder: Encoder) -> list[LeftAlone]:
    """The columns that no part uses, and whose values the rendered chats do not have."""
    form = encoder.format
    unused = [*form.unused, *_late(compared, form)]
    found = [_left_alone(compared, column, read=_is_read(compared, column, encoder)) for column in unused]
    if form.ranking is None:  # else the responses that are in no pair are lacking
        parts = [_left_alone(compared, column, read=False) for column in form.partly_used]
        found += [column._replace(is_partly_used=True) for column in parts if column.has_words]
    return [column for column in found if column.rows or column.is_read]


def _late(compared: list[Compared], form: Format) -> list[str]:
    """The columns that the first rows lack, and that no part uses either."""
    if form.convert:
        return []
    used = {GROUP, *form.known, *(name for names in form.late.values() for name in names)}
    rows = [row for one in compared for row in one.row.get(GROUP, [one.row])]
    return list(dict.fromkeys(name for row in rows for name in row if name not in used))


def _left_alone(compared: list[Compared], column: str, *, read: bool) -> LeftAlone:
    lost = [_lost_texts(row, column) for row in compared]
    others = [(texts, row) for texts, row in zip(lost, compared, strict=True) if not _is_copy(row, column)]
    lacking, said = sum(len(text) for texts, _ in others for text in texts), sum(len(row.rendered) for _, row in others)
    return LeftAlone(
        column,
        rows=sum(map(bool, lost)),
        longest=max((len(text) for texts in lost for text in texts), default=0),
        has_words=any(len(text.split()) > 1 for texts in lost for text in texts),
        weight=lacking / max(said, 1),
        is_read=read,
    )


def _is_read(compared: list[Compared], column: str, encoder: Encoder) -> bool:
    """Whether the template renders another text when it gets the column as a variable."""
    if column in ("messages", "add_generation_prompt") or column not in read_variables(encoder.template.source):
        return False
    rows = [(row.records[0], row.row[column]) for row in compared if row.records and row.row.get(column) is not None]
    return any(_with_variable(encoder, record, column, value) != rendered(encoder, [record]) for record, value in rows)


def _with_variable(encoder: Encoder, record: Record, column: str, value: Any) -> str:
    if isinstance(record, Text):
        return record.text
    return rendered(encoder, [replace(record, variables=record.variables | {column: value})])


def _lost_texts(compared: Compared, column: str) -> list[str]:
    """The texts and numbers of a column that the rendered chats do not have."""
    values = [row.get(column) for row in compared.row.get(GROUP, [compared.row])]
    texts = dict.fromkeys(text.strip() for value in values for text in _texts_of(value))
    return [text for text in texts if text and not _has(compared.rendered, text)]


def _has(rendered: str, text: str) -> bool:
    """Whether a text has another one; a single word as a word of its own."""
    if text not in rendered:
        return False
    return len(text.split()) > 1 or bool(re.search(rf"(?<!\w){re.escape(text)}(?!\w)", rendered))


def _is_copy(compared: Compared, column: str) -> bool:
    """Whether a text of the column has all messages: the chat once more, perhaps as another template renders it."""
    texts = list(_texts_of(compared.row.get(column)))
    return any(all(str(message["content"]).strip() in text for message in compared.messages) for text in texts)


def _texts_of(value: Any) -> Iterator[str]:
    """The texts and numbers in a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts_of(item)
    elif value is not None:
        yield str(value)
