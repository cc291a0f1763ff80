"""What rows say and their chats do not: rows that are evenly spread over a split are compared with their records."""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from smollit.commands.inspect.split_view import SplitView
from smollit.data.encoding.encoder import Encoder
from smollit.data.encoding.report import fraction
from smollit.data.encoding.steps import DroppedRow, RenderedRow
from smollit.data.formats.converters import decode_row
from smollit.data.formats.types import Conversation, Message, Preference, Record, Text
from smollit.data.sources.files import Row

NUM_COMPARED = 500  # rows
SHORTEST_QUESTION = 20  # characters; shorter questions may occur in a response by chance
MAX_REPEATS = 0.05  # fraction of these rows
# Marks of a chat that is written out as text, and of its questions and responses if it has only words.
MARKS = re.compile(
    r"<\|im_start\|>\w|<\|start_header_id\|>|<start_of_turn>|<\|(?:user|assistant|system)\|>|\[INST\]"
    r"|^#+ *(?:Human|Assistant|User|Instruction|Response|Input)\b *:",
    re.MULTILINE,
)
QUESTION = re.compile(r"^(?:Human|User|Q|Question) *:", re.MULTILINE)
RESPONSE = re.compile(r"^(?:AI|Assistant|Bot|A|Answer) *:", re.MULTILINE)
MISSING_WORDS = {"nan", "none", "null", "undefined", "<na>"}
# What ends a turn in some template, at the end of a text.
END = re.compile(
    r"(?:</s>|<eos>|<(?:end_of_turn|end_of_utterance)>|<\|[a-z_]*(?:end|eot)[a-z_]*\|>)\s*\Z", re.IGNORECASE
)
PLACEHOLDER = re.compile(r"<(?:image|video|audio)>|<\|(?:image|video|audio)_pad\|>")


class Compared(NamedTuple):
    """A row, its records, and their texts as the template renders them."""

    row: Row
    records: list[Record]
    rendered: str

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
    return [
        Compared(decode_row(row), records, rendered(view.encoder, records))
        for row, records in zip(rows, parsed, strict=True)
    ]


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


def _in_rows(found: Sequence[object]) -> str:
    """In how many of the compared rows something is found: `found` has a true value for each of these."""
    return f"in {fraction(sum(map(bool, found)), len(found), 'compared rows')}"


def written_chats(compared: list[Compared]) -> list[str]:
    """Whether texts, or the turns of chats, hold whole chats that are written out."""
    found = [_mark("\n".join(turn["content"] for turn in row.messages)) for row in compared]
    if 2 * sum(map(bool, found)) <= len(found):
        return []
    marks = ", ".join(sorted({match[0].strip()[:20] for match in found if match})[:3])
    is_text = any(isinstance(record, Text) for row in compared for record in row.records)
    what = "questions count in the loss too" if is_text else "these marks are plain text inside of a turn"
    return [
        f"{_in_rows(found)} a text seems to be a chat that is written"
        f" out ({marks}): {what}. Give the messages themselves, as `data.convert` can"
    ]


def _mark(text: str) -> re.Match[str] | None:
    """What shows that a text is a chat."""
    return MARKS.search(text) or (RESPONSE.search(text) and QUESTION.search(text))


def written_ends(compared: list[Compared]) -> list[str]:
    """Whether responses end with what ends a turn, which the template writes itself."""
    found = [
        [end for turn in row.messages if turn["role"] == "assistant" and (end := END.search(turn["content"]))]
        for row in compared
    ]
    if not any(found):
        return []
    names = ", ".join(sorted({f"`{end[0].strip()}`" for ends in found for end in ends}))
    return [
        f"{_in_rows(found)} a response ends with {names} as plain text,"
        " before the template's own end: the model would learn to write it. `data.convert` can remove it"
    ]


def missing_values(compared: list[Compared]) -> list[str]:
    """Whether turns are no more than what programs write for a missing value."""
    texts = [{turn["content"].strip().lower() for turn in row.messages} & MISSING_WORDS for row in compared]
    if not any(texts):
        return []
    words = ", ".join(sorted({f"`{word}`" for found in texts for word in found}))
    return [
        f"{_in_rows(texts)} a turn is no more than {words}, as programs"
        " write a missing value. `data.where` can leave such rows out"
    ]


def empty_questions(compared: list[Compared]) -> list[str]:
    """Whether user turns have no text."""
    found = [any(turn["role"] == "user" and not turn["content"].strip() for turn in row.messages) for row in compared]
    if not any(found):
        return []
    return [f"{_in_rows(found)} a user turn has no text"]


def placeholders(compared: list[Compared]) -> list[str]:
    """Whether messages have placeholders of images, videos or sounds, which are not there."""
    found = [PLACEHOLDER.search(row.text) for row in compared]
    names = sorted({match[0] for match in found if match})
    if not names:
        return []
    return [
        f"{_in_rows(found)} a message has {', '.join(names)}: the model"
        " would learn to speak of what it does not get. `data.where` can leave such rows out"
    ]


def escaped_tokens(compared: list[Compared], encoder: Encoder) -> list[str]:
    """Whether most rows spell special tokens in their loss spans: the model would learn their characters instead."""
    rows = [[row.row for row in map(encoder.render, one.records) if isinstance(row, RenderedRow)] for one in compared]
    found = [{part.text for row in of for part in row.segments if part.escaped and part.in_loss} for of in rows]
    if 2 * sum(map(bool, found)) <= len(found):
        return []
    names = ", ".join(f"`{name}`" for name in sorted(set().union(*found))[:5])
    return [
        f"{_in_rows(found)} responses spell special tokens of the tokenizer or the template ({names}), which are"
        " escaped: the model would learn to write their characters. Special tokens that belong in responses must be"
        " added to the tokenizer as not special; `data.convert` can remove those of the template"
    ]


def rendered(encoder: Encoder, records: Iterable[Record]) -> str:
    """The texts of records as the template renders them; of those that it refuses, none."""
    rows = [row for row in map(encoder.render, records) if isinstance(row, RenderedRow)]
    return "\n".join(
        text
        for row in rows
        for text in ([chat.text for chat in row.row.chats] or [segment.text for segment in row.row.segments])
    )
