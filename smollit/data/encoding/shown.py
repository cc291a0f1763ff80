"""A row as a person wants to see it: its text in pieces, each with its tokens and what becomes of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from smollit.data.encoding.truncate import Draft
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


def show_draft(template: ChatTemplate, draft: Draft, kept: list[Span], index: int, problem: tuple[str, str]) -> Shown:
    """What became of a row, given the tokens that are kept of each segment."""
    pieces = [
        Piece(turn["content"], template.encode([turn["content"]])[0], turn["role"], "cut", "shared")
        for turn in draft.turns_cut
    ]
    place = 0
    borders = role_borders(template, draft.row.chats[0]) if draft.row.chats else []
    for number, (segment, ids, span) in enumerate(zip(draft.segments, draft.ids, kept, strict=True)):
        roles = [(end - place, role) for end, role in borders if end > place] or [(0, _role(draft, segment))]
        first = number == 0 and segment.in_loss  # nothing can predict the first token: it is not trained
        pieces += segment_pieces(template, segment, ids, span, roles, first)
        place += len(segment.text)
    return Shown(index, pieces, *problem, notes(draft, kept))


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


def notes(draft: Draft, kept: list[Span]) -> list[str]:
    """What was changed in the row."""
    lost = sum(map(len, draft.ids)) - sum(end - start for start, end in kept)
    plain = sum(segment.escaped for segment in draft.segments)
    control = f"{_plural(plain, 'control text')} escaped" if plain else f"{_plural(draft.control, 'control text')}"
    return [
        *([control] if draft.control else []),
        *([f"{_plural(len(draft.turns_cut), 'turn')} cut from the start"] if draft.turns_cut else []),
        *([f"{_plural(lost, 'token')} cut"] if lost else []),
    ]


def _role(draft: Draft, segment: Segment) -> str:
    if isinstance(draft.record, Text) or not draft.row.chats:
        return "text"
    role: str = draft.row.chats[0].messages[segment.message]["role"]
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
