"""What counts of a text, where `data.train_on` is `all` or names parts of turns: reasoning, content, tool_calls."""

from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from smollit.data.formats.drop_reason import BadRow, DropReason
from smollit.data.formats.types import Message
from smollit.data.template.loss_spans import LossSpan
from smollit.data.template.rendering.as_read import CLOSES, REASONING
from smollit.data.template.rendering.jinja import Span
from smollit.data.template.rendering.marks import MARKER, Printed
from smollit.data.template.rendering.renderer import RenderedChat, Renderer
from smollit.data.template.train_on import ALL, PARTS, TrainOn
from smollit.data.template.turns import TurnFinder


class TurnPart(NamedTuple):
    """The characters [start, end) of a message, and whether they count in the loss.

    Args:
        start: The first character.
        end: The character after the last one.
        message: Index of the message.
        in_loss: Whether they count.
        starts_turn: Whether inference starts here.
    """

    start: int
    end: int
    message: int
    in_loss: bool = True
    starts_turn: bool = False


@lru_cache
def named_parts(train_on: TrainOn) -> frozenset[str]:
    """The parts of assistant turns that `train_on` names; empty if whole turns count."""
    return frozenset(PARTS) & frozenset([train_on] if isinstance(train_on, str) else train_on)


def split_turns(renderer: Renderer, chat: RenderedChat, spans: list[LossSpan], train_on: TrainOn) -> list[TurnPart]:
    """Whole messages, or their parts up to the last one that counts if `train_on` names parts, or the whole text.

    Raises:
        BadRow: If no message has such a part.
    """
    if train_on == ALL:
        return whole_text(chat, spans)
    named = named_parts(train_on)
    if not named:
        return [TurnPart(*span) for span in spans]
    printed = TurnFinder(renderer).printed(chat)
    parts: list[TurnPart] = []
    for span in spans:
        message = chat.messages[span.message]
        if message["role"] == "assistant":
            parts += split_turn(chat.text, span, message, printed[span.message], named)
        else:
            parts.append(TurnPart(*span))
    last = max((number for number, part in enumerate(parts, 1) if part.in_loss), default=0)
    if not last:
        raise BadRow(DropReason.NO_LOSS_TOKENS, f"no turn has a part of `data.train_on`: {train_on!r}")
    return parts[:last]


def whole_text(chat: RenderedChat, spans: list[LossSpan]) -> list[TurnPart]:
    """The text, divided where assistant turns start and end; all of it counts but messages with `train: false`."""
    parts, cursor = [], 0
    for start, end, message in spans:
        is_trained = chat.messages[message].get("train", True)
        parts += [TurnPart(cursor, start, max(message - 1, 0)), TurnPart(start, end, message, is_trained)]
        cursor = end
    return [*parts, TurnPart(cursor, len(chat.text), len(chat.messages) - 1)]


def split_turn(text: str, span: LossSpan, message: Message, printed: Printed, wanted: frozenset[str]) -> list[TurnPart]:
    """An assistant turn, divided into its parts; the end marker belongs to the last of them.

    Args:
        text: The rendered chat.
        span: The turn.
        message: The message.
        printed: Where it is printed.
        wanted: The parts that count.
    """
    places = _places(text, span, message, printed)
    starts = [span.start, *(_boundary(text, *pair) for pair in pairwise(places))]
    ends = [*starts[1:], span.end]
    return [
        TurnPart(start, end, span.message, name in wanted, starts_turn=number == 0)
        for number, (start, end, (name, _)) in enumerate(zip(starts, ends, places, strict=True))
    ]


def _places(text: str, span: LossSpan, message: Message, printed: Printed) -> list[tuple[str, Span]]:
    """Each part that the turn has, in order, and where its texts are; a turn without texts is content."""
    places = {"reasoning" if key in REASONING else key: place for key, place in printed.places.items()}
    places = {key: place for key, place in places.items() if key in PARTS}
    closed = text.find(CLOSES, span.start, span.end) if CLOSES in message["content"] else -1
    if closed >= 0:
        start = closed + len(CLOSES)
        start += len(text[start : span.end]) - len(text[start : span.end].lstrip())
        places |= {"reasoning": (span.start, closed), "content": (start, printed.end or span.end)}
    return sorted(places.items(), key=lambda item: item[1]) or [("content", (span.start, span.end))]


def _boundary(text: str, before: tuple[str, Span], after: tuple[str, Span]) -> int:
    """Where a part ends and the next starts: reasoning with the marker that closes it, calls before the content."""
    (name, (_, end)), (_, (start, _)) = before, after
    if name == "content":
        return end
    closes = MARKER.search(text, end, start) if name == "reasoning" else None
    position = closes.end() if closes else start
    return min(start, position + len(text[position:]) - len(text[position:].lstrip()))
