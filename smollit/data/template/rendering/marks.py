"""Marks: private-use characters on either side of texts in messages show where a template prints these texts.

Texts are never searched for in the rendered chat. The chat is rendered once more with marks: if nothing else changes,
the marks show where each text is, or that it is not printed.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice, zip_longest
from typing import Any, NamedTuple

from smollit.data.formats.drop_reason import BadRow, DropReason
from smollit.data.formats.types import Message
from smollit.data.template.rendering.jinja import Span

PRIVATE = range(0xE000, 0xF900)
MARKER = re.compile(r"<[^<>\s]{1,40}>|\[/?[A-Z_]{2,20}\]")
UNMARKED = ("role", "type", "id", "tool_call_id", "train")  # keys whose values templates compare
Skeleton = list[str]  # the text of a template before, between and after the contents of a chat
Render = Callable[[list[Message]], str]


class Printed(NamedTuple):
    """Where a message is printed in a rendered chat.

    Args:
        start: Where the first of its texts starts; None if no start was located.
        end: Where the last of its texts ends; None if no end was located.
        content: Where its content starts and ends, without the whitespace around it; None for what was not located.
        places: For each key with a text that is printed, at least in part, where the first such text starts and the
            last one ends.
    """

    start: int | None = None
    end: int | None = None
    content: tuple[int | None, int | None] = (None, None)
    places: dict[str, Span] = {}


class Leaf(NamedTuple):
    """A text in a message, by the keys that lead to it, with the marks around it."""

    message: int
    key: str
    left: str
    right: str


def unused_characters(text: str, count: int = 2) -> list[str]:
    """Private-use characters that the text does not contain."""
    free = list(islice((chr(code) for code in PRIVATE if chr(code) not in text), count))
    if len(free) < count:
        raise BadRow(DropReason.REFUSED_BY_TEMPLATE, "the text contains too many private-use characters from U+E000 on")
    return free


def find_skeleton(render: Render, messages: list[Message], bodies: list[str], text: str) -> Skeleton | None:
    """The template's text around the contents of a chat; None if the render with marks is a different text."""
    left, right = unused_characters(text)
    marked_bodies = [f"{left}{body}{right}" for body in bodies]
    try:
        marked = render([{**m, "content": body} for m, body in zip(messages, marked_bodies, strict=True)])
    except BadRow:
        return None
    before, *parts = marked.split(left)
    if len(parts) != len(messages) or right in before or marked.replace(left, "").replace(right, "") != text:
        return None
    found = [part.partition(right) for part in parts]
    if any(inside != body or right in after for (inside, _, after), body in zip(found, bodies, strict=True)):
        return None
    return [before, *(after for _, _, after in found)]


def spans_between(skeleton: Skeleton, bodies: list[str]) -> list[Span]:
    """The spans of contents between the parts of a skeleton."""
    spans, cursor = [], 0
    for before, body in zip(skeleton, bodies, strict=False):
        start = cursor + len(before)
        cursor = start + len(body)
        spans.append((start, cursor))
    return spans


def common_length(one: str, other: str) -> int:
    """Length of the common start of two texts; a marker of `other` that is there in part does not count."""
    pairs = enumerate(zip(one, other, strict=False))
    length = next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))
    cut = next((found for found in MARKER.finditer(other) if found.start() < length < found.end()), None)
    return cut.start() if cut else length


def locate(render: Render, messages: list[Message], text: str) -> list[Printed]:
    """Where each message is printed, as far as marks show it.

    All texts are marked at once; where the template reads one of them otherwise than to print it, only contents are;
    and where it does so with a content, one message at a time.
    """
    everything = range(len(messages))
    for keys in (None, ("content",)):
        found = _locate_some(render, messages, text, everything, keys)
        if found is not None:
            return found
    alone = [_locate_some(render, messages, text, [index], None) for index in everything]
    return [found[index] if found else Printed() for index, found in enumerate(alone)]


def tail_of(render: Render, messages: list[Message]) -> str | None:
    """What the template prints after the texts of the last message; None if marks do not show it."""
    last = len(messages) - 1
    text = render(messages)
    found = _locate_some(render, messages, text, [last], None) or _locate_some(
        render, messages, text, [last], ("content",)
    )
    return text[found[last].end :] if found and found[last].end is not None else None


def _locate_some(
    render: Render, messages: list[Message], text: str, which: Iterable[int], keys: tuple[str, ...] | None
) -> list[Printed] | None:
    """Where the messages `which` are printed, by marks in the values of `keys`; None if marks change the text."""
    characters = (chr(code) for code in PRIVATE if chr(code) not in text)
    leaves: list[Leaf] = []
    marked = list(messages)
    for index in which:
        marked[index] = _mark_message(messages[index], index, keys, characters, leaves)
    try:
        shown = render(marked)
    except BadRow:
        return None
    marks = {mark for leaf in leaves for mark in (leaf.left, leaf.right)}
    positions, plain = _split_marks(shown, marks)
    if plain != text:
        return None
    return _collect(leaves, positions, len(messages))


def _mark_message(
    message: Message, index: int, keys: tuple[str, ...] | None, characters: Iterator[str], leaves: list[Leaf]
) -> Message:
    """The message with marks around its texts, of `keys` or of all keys."""

    def mark(value: Any, key: str, top: str) -> Any:
        if key in UNMARKED:
            return value
        if isinstance(value, dict):
            return {name: mark(item, name, top) for name, item in value.items()}
        if isinstance(value, list):
            return [mark(item, key, top) for item in value]
        if not isinstance(value, str) or not value.strip():
            return value
        left, right = next(characters, ""), next(characters, "")
        if not right:
            return value
        leaves.append(Leaf(index, top, left, right))
        start = len(value) - len(value.lstrip())
        core = value.strip()
        return value[:start] + left + core + right + value[start + len(core) :]

    return {key: mark(value, key, key) if keys is None or key in keys else value for key, value in message.items()}


def _split_marks(shown: str, marks: set[str]) -> tuple[dict[str, list[int]], str]:
    """Where each mark is in the text without marks, and that text."""
    pieces = re.split(f"([{''.join(marks)}])", shown) if marks else [shown]
    positions: dict[str, list[int]] = {}
    cursor = 0
    for text, mark in zip_longest(pieces[::2], pieces[1::2]):
        cursor += len(text)
        positions.setdefault(mark, []).append(cursor)
    return positions, "".join(pieces[::2])


def _collect(leaves: list[Leaf], positions: dict[str, list[int]], count: int) -> list[Printed]:
    """The extent of each message. What is printed twice, as the name of a called tool is, counts where it is first."""
    printed = [Printed()] * count
    for index in {leaf.message for leaf in leaves}:
        own = [leaf for leaf in leaves if leaf.message == index]
        starts = [(leaf.key, positions[leaf.left]) for leaf in own if leaf.left in positions]
        ends = [(leaf.key, positions[leaf.right]) for leaf in own if leaf.right in positions]
        once = [{key: found[0] for key, found in sides if len(found) == 1} for sides in (starts, ends)]
        content = (once[0].get("content"), once[1].get("content"))
        first = min((found[0] for _, found in starts), default=None)
        last = max((found[0] for _, found in ends), default=None)
        found = [(key, at) for key, positions_of in (*starts, *ends) for at in positions_of[:1]]
        places = {
            key: (min(at for k, at in found if k == key), max(at for k, at in found if k == key)) for key, _ in found
        }
        printed[index] = Printed(first, last, content, places)
    return printed
