"""A row as a person wants to see it: its text in pieces, each with its tokens and what becomes of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from smollit.data.encoding.encoder import Encoder
from smollit.data.encoding.steps import DroppedRow, TokenizedRow, TruncatedRow
from smollit.data.formats.types import Text
from smollit.data.template.jinja import Span
from smollit.data.template.renderer import RenderedChat
from smollit.data.template.template import ChatTemplate
from smollit.data.template.tokenize import Branch, Segment

State = Literal["trained", "context", "cut"]
Border = tuple[int, str]  # where, in characters, a turn ends, and its role


class Piece(NamedTuple):
    """A stretch of text with its token ids: of one role, and in one state."""

    text: str
    ids: list[int]
    role: str
    state: State
    branch: Branch


@dataclass(frozen=True)
class Shown:
    """A row, made as examples are.

    Args:
        index: Its number in the split.
        pieces: Its text; the ids of those that are not cut, joined, are the example's.
        problem: Why it was dropped, or empty.
        detail: Where in the row, and what came.
        notes: What was changed in it.
    """

    index: int
    pieces: list[Piece]
    problem: str
    detail: str
    notes: list[str]


def show(encoder: Encoder, row: dict[str, Any], index: int) -> Shown:
    """A row and what became of it, made as its example is."""
    (found,) = encoder.encode([row])
    if isinstance(found, DroppedRow):
        reached, problem, detail = found.reached, str(found.bad.reason), found.bad.detail
    else:
        reached, problem, detail = found.truncated, "", ""
    if reached is None:  # it never became a chat
        return Shown(index, [], problem, detail, [])
    if isinstance(reached, TokenizedRow):
        reached = TruncatedRow(reached, [(0, len(ids)) for ids in reached.ids])
    return Shown(index, show_pieces(encoder.template, reached), problem, detail, notes(reached))


def show_pieces(template: ChatTemplate, row: TruncatedRow) -> list[Piece]:
    """The text of a row, those turns first that were cut from the start."""
    tokenized, rendered = row.tokenized, row.tokenized.rendered
    pieces = [
        Piece(turn["content"], template.encode([turn["content"]])[0], turn["role"], "cut", "shared")
        for turn in tokenized.cut_turns
    ]
    place = 0
    borders = role_borders(template, rendered.row.chats[0]) if rendered.row.chats else []
    for number, (segment, ids, span) in enumerate(zip(rendered.row.segments, tokenized.ids, row.kept, strict=True)):
        roles = [(end - place, role) for end, role in borders if end > place] or [(0, _role(row, segment))]
        first = number == 0 and segment.in_loss  # nothing can predict the first token: it is not trained
        pieces += segment_pieces(template, segment, ids, span, roles, first)
        place += len(segment.text)
    return pieces


def segment_pieces(
    template: ChatTemplate, segment: Segment, ids: list[int], kept: Span, roles: list[Border], first: bool
) -> list[Piece]:
    """The segment divided where its role or its state changes.

    Args:
        template: Tokenised it.
        segment: The segment.
        ids: Its token ids.
        kept: Which of them are kept.
        roles: Where, in characters of the segment, the turns of roles end; the last one has no end.
        first: Whether its first token is not trained although the segment is.
    """
    ends = [0, *template.token_ends(segment)]
    state: State = "trained" if segment.in_loss else "context"
    marks: list[tuple[State, str]] = []
    for token in range(len(ids)):
        role = next((role for end, role in roles if ends[token] < end), roles[-1][1])
        is_kept = kept[0] <= token < kept[1]
        marks.append((state if is_kept and not (first and token == 0) else "context" if is_kept else "cut", role))
    return [
        Piece(segment.text[ends[start] : ends[end]], ids[start:end], marks[start][1], marks[start][0], segment.branch)
        for start, end in _stretches(marks)
    ]


def role_borders(template: ChatTemplate, chat: RenderedChat) -> list[Border]:
    """Where each turn ends in the rendered chat, with its role; empty where contents were not located."""
    borders: list[Border] = []
    text = template.default_system.whole if template.default_system else ""
    if text and chat.messages[0]["role"] != "system" and chat.text.startswith(text):
        borders.append((len(text), "system"))
    for message, (_, end), following in zip(
        chat.messages, chat.contents or [], [*(chat.contents or [])[1:], (len(chat.text), 0)], strict=False
    ):
        shape = template.shape(message["role"])
        end += len(shape.end) if shape and shape.end and chat.text.startswith(shape.end, end) else 0
        between = chat.text[end : following[0]]
        borders.append((end + len(between) - len(between.lstrip()), message["role"]))
    return borders


def notes(row: TruncatedRow) -> list[str]:
    """What was changed in the row."""
    tokenized, rendered = row.tokenized, row.tokenized.rendered
    lost = sum(map(len, tokenized.ids)) - sum(end - start for start, end in row.kept)
    plain = sum(segment.escaped for segment in rendered.row.segments)
    control = f"{_plural(plain, 'control text')} escaped" if plain else _plural(rendered.num_control, "control text")
    return [
        *([control] if rendered.num_control else []),
        *([f"{_plural(len(tokenized.cut_turns), 'turn')} cut from the start"] if tokenized.cut_turns else []),
        *([f"{_plural(lost, 'token')} cut"] if lost else []),
    ]


def _role(row: TruncatedRow, segment: Segment) -> str:
    rendered = row.tokenized.rendered
    if isinstance(rendered.record, Text) or not rendered.row.chats:
        return "text"
    role: str = rendered.row.chats[0].messages[segment.message]["role"]
    return role


def _stretches(marks: list[tuple[State, str]]) -> Iterator[Span]:
    """Runs [start, end) of equal marks."""
    start = 0
    for place in range(1, len(marks) + 1):
        if place == len(marks) or marks[place] != marks[start]:
            yield start, place
            start = place


def _plural(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
