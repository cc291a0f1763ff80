"""A row as the encoder processes it: pieces of text with their tokens, and whether they count in the loss."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from smollit.data.encoding.encoder import Encoder
from smollit.data.encoding.steps import DroppedRow, EncodedRow, TokenizedRow, TruncatedRow
from smollit.data.formats.types import Preference, Text
from smollit.data.sources.files import Row
from smollit.data.template.rendering.jinja import Span
from smollit.data.template.rendering.renderer import RenderedChat
from smollit.data.template.template import ChatTemplate
from smollit.data.template.tokenize import Segment

State = Literal["loss", "context", "truncated"]
TurnEnd = tuple[int, str]  # where, in characters, a turn ends, and its role


class Piece(NamedTuple):
    """A piece of text with its token ids: of one role, in one state, and of the prompt or a response."""

    text: str
    ids: list[int]
    role: str
    state: State
    branch: str


@dataclass(frozen=True)
class InspectedRow:
    """A row, encoded as examples are.

    Args:
        index: Its number in the split.
        pieces: Its text; the ids of those that are not truncated, joined, are the example's.
        problem: Why it was dropped, or empty.
        detail: The position in the row, and the value found.
        notes: What was changed in it.
        record: Which of the records of its row it is, such as `2 of 6`; empty if it is the only one.
        gap: Score of the chosen minus score of the rejected response, if it is a pair with scores.
    """

    index: int
    pieces: list[Piece]
    problem: str
    detail: str
    notes: list[str]
    record: str = ""
    gap: float | None = None


def inspect_row(encoder: Encoder, row: Row, index: int) -> list[InspectedRow]:
    """Encode a row as its examples are, and keep the text of each."""
    found = [_inspect(encoder, step, index) for step in encoder.encode([row])]
    if len(found) == 1:
        return found
    return [replace(one, record=f"{number} of {len(found)}") for number, one in enumerate(found, 1)]


def _inspect(encoder: Encoder, found: EncodedRow | DroppedRow, index: int) -> InspectedRow:
    if isinstance(found, DroppedRow):
        reached, problem, detail = found.reached, str(found.bad.reason), found.bad.detail
    else:
        reached, problem, detail = found.truncated, "", ""
    if reached is None:  # it never became a chat
        return InspectedRow(index, [], problem, detail, [])
    if isinstance(reached, TokenizedRow):
        reached = TruncatedRow(reached, [(0, len(ids)) for ids in reached.ids])
    record = reached.tokenized.rendered.record
    gap = record.score_gap if isinstance(record, Preference) else None
    return InspectedRow(index, pieces_of(encoder.template, reached), problem, detail, notes(reached), gap=gap)


def pieces_of(template: ChatTemplate, row: TruncatedRow) -> list[Piece]:
    """The text of a row, starting with the turns that were truncated from its start."""
    tokenized, rendered = row.tokenized, row.tokenized.rendered
    pieces = [
        Piece(turn["content"], template.encode([turn["content"]])[0], turn["role"], "truncated", "shared")
        for turn in tokenized.cut_turns
    ]
    start = 0
    turns = turn_ends(template, rendered.row.chats[0]) if rendered.row.chats else []
    for number, (segment, ids, kept) in enumerate(zip(rendered.row.segments, tokenized.ids, row.kept, strict=True)):
        ends = [0, *template.token_ends(segment)]
        states = token_states(segment, len(ids), kept, is_first=number == 0)
        of_turn = [(0, _role(row, segment))]  # a turn has more than its content: reasoning, calls, its end
        roles = of_turn if segment.in_loss else [(end - start, role) for end, role in turns if end > start] or of_turn
        marks = [
            (state, next((role for end, role in roles if ends[token] < end), roles[-1][1]))
            for token, state in enumerate(states)
        ]
        for first, last in _stretches(marks):
            state, role = marks[first]
            pieces.append(Piece(segment.text[ends[first] : ends[last]], ids[first:last], role, state, segment.branch))
        start += len(segment.text)
    return pieces


def token_states(segment: Segment, num_tokens: int, kept: Span, *, is_first: bool) -> list[State]:
    """The state of each token of a segment.

    Args:
        segment: The segment.
        num_tokens: Number of its tokens.
        kept: Those that are kept, [start, end).
        is_first: Whether it is the row's first segment, whose first token nothing predicts: it is not in the loss.
    """
    inside: State = "loss" if segment.in_loss else "context"
    states: list[State] = [inside if kept[0] <= token < kept[1] else "truncated" for token in range(num_tokens)]
    if is_first and states[:1] == ["loss"]:
        states[0] = "context"
    return states


def turn_ends(template: ChatTemplate, chat: RenderedChat) -> list[TurnEnd]:
    """Where each turn ends in the rendered chat, with its role; empty if the contents were not located."""
    ends: list[TurnEnd] = []
    text = template.default_system.whole if template.default_system else ""
    if text and chat.messages[0]["role"] != "system" and chat.text.startswith(text):
        ends.append((len(text), "system"))
    for message, (_, end), following in zip(
        chat.messages, chat.contents or [], [*(chat.contents or [])[1:], (len(chat.text), 0)], strict=False
    ):
        shape = template.shape(message["role"])
        end += len(shape.end) if shape and shape.end and chat.text.startswith(shape.end, end) else 0
        between = chat.text[end : following[0]]
        ends.append((end + len(between) - len(between.lstrip()), message["role"]))
    return ends


def notes(row: TruncatedRow) -> list[str]:
    """What was changed in the row."""
    tokenized, rendered = row.tokenized, row.tokenized.rendered
    lost = sum(map(len, tokenized.ids)) - sum(end - start for start, end in row.kept)
    plain = sum(segment.escaped for segment in rendered.row.segments)
    control = f"{_plural(plain, 'control text')} escaped" if plain else _plural(rendered.num_control, "control text")
    return [
        *([control] if rendered.num_control else []),
        *([f"{_plural(len(tokenized.cut_turns), 'turn')} truncated from the start"] if tokenized.cut_turns else []),
        *([f"{_plural(lost, 'token')} truncated"] if lost else []),
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
    for index in range(1, len(marks) + 1):
        if index == len(marks) or marks[index] != marks[start]:
            yield start, index
            start = index


def _plural(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
