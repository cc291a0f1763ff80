"""What rows say and their chats do not: rows that are evenly spread over a split are compared with their records."""

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from smollit.commands.inspect.split_view import SplitView
from smollit.data.encoding.report import fraction
from smollit.data.encoding.steps import DroppedRow
from smollit.data.formats.converters import decode_row
from smollit.data.formats.groups import GROUP
from smollit.data.formats.types import Conversation, Message, Preference, Record
from smollit.data.sources.files import Row

NUM_COMPARED = 500  # rows
SHORTEST_QUESTION = 20  # characters; shorter questions may occur in a response by chance
SHORTEST_LOST = 20  # characters of a text, in a column that is left alone, that are worth a sentence
MAX_REPEATS = 0.05  # fraction of these rows
PLACEHOLDER = re.compile(r"<(?:image|video|audio)>|<\|(?:image|video|audio)_pad\|>")


class Compared(NamedTuple):
    """A row and its records."""

    row: Row
    records: list[Record]

    @property
    def messages(self) -> list[Message]:
        """The messages of all records; a text is one."""
        found: list[Message] = []
        for record in self.records:
            if isinstance(record, Conversation):
                found += record.messages
            elif isinstance(record, Preference):
                found += [*record.prompt, record.chosen, record.rejected]
            else:
                found.append({"role": "text", "content": record.text})
        return found

    @property
    def text(self) -> str:
        """The texts of all messages, and the values of their other keys."""
        return "\n".join(str(value) for message in self.messages for value in message.values())


def compared_rows(view: SplitView) -> list[Compared]:
    """Rows that are evenly spread over the split, and their records."""
    numbers = np.unique(view.column("row"))
    chosen = numbers[np.unique(np.linspace(0, len(numbers) - 1, NUM_COMPARED).astype(int))] if len(numbers) else []
    rows = [view.row(int(number)) for number in chosen]
    parsed = [[record for record in view.encoder.parse(row) if not isinstance(record, DroppedRow)] for row in rows]
    return [Compared(decode_row(row), records) for row, records in zip(rows, parsed, strict=True)]


def repeated_prompts(compared: list[Compared]) -> list[str]:
    """Whether responses start with the question that they respond to."""
    repeats = [any(map(repeats_prompt, row.records)) for row in compared]
    if sum(repeats) <= MAX_REPEATS * len(repeats):
        return []
    return [
        f"in {fraction(sum(repeats), len(repeats), 'compared rows')} a response starts with"
        " the question before it: the model would learn to echo. Check the step that made this data: responses must"
        " not contain the prompt"
    ]


def repeats_prompt(record: Record) -> bool:
    """Whether an assistant turn, for pairs the chosen response, starts with the question before it."""
    if isinstance(record, Conversation):
        messages = record.messages
    elif isinstance(record, Preference):
        messages = [*record.prompt, record.chosen]
    else:
        return False
    return any(
        len(question) >= SHORTEST_QUESTION and response.startswith(question)
        for question, response in _exchanges(messages)
    )


def _exchanges(messages: list[Message]) -> Iterator[tuple[str, str]]:
    for before, after in pairwise(messages):
        if (before["role"], after["role"]) == ("user", "assistant"):
            yield before["content"].strip(), after["content"].strip()


def placeholders(compared: list[Compared]) -> list[str]:
    """Whether messages have placeholders of images, videos or sounds, which are not there."""
    found = [PLACEHOLDER.search(row.text) for row in compared]
    names = sorted({match[0] for match in found if match})
    if not names:
        return []
    return [
        f"in {fraction(sum(map(bool, found)), len(found), 'compared rows')} a message has {', '.join(names)}: the model"
        " would learn to speak of what it does not get. `data.where` can leave such rows out"
    ]


def columns_left_alone(compared: list[Compared], unused: tuple[str, ...]) -> dict[str, str]:
    """A sentence for each column that no part uses, and that has texts which the chats do not have."""
    sentences = {}
    for column in unused:
        lost = [_longest_lost(row, column) for row in compared]
        count = sum(length >= SHORTEST_LOST for length in lost)
        if count:
            sentences[column] = (
                f"the column `{column}` is not used, and has texts of up to {max(lost):,} characters in"
                f" {fraction(count, len(lost), 'compared rows')}: `data.columns` can map it to a part"
            )
    return sentences


def _longest_lost(compared: Compared, column: str) -> int:
    """Characters of the longest text of a column that no message has."""
    values = [row.get(column) for row in compared.row.get(GROUP, [compared.row])]
    return max(
        (len(text) for value in values for text in _texts_of(value) if text.strip() not in compared.text), default=0
    )


def _texts_of(value: Any) -> Iterator[str]:
    """The texts of several words in a value."""
    if isinstance(value, str):
        yield from [value] if len(value.split()) > 1 else []
    elif isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts_of(item)
