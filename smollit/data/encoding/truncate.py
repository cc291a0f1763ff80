"""Truncation of rows that are longer than `max_length`: whole turns are removed from the start, then tokens."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Literal

from smollit.data.encoding.steps import DroppedRow, TokenizedRow, TruncatedRow
from smollit.data.formats.drop_reason import BadRow, DropReason
from smollit.data.formats.types import Conversation, Message, Preference, Record
from smollit.data.template.rendering.jinja import Span
from smollit.data.template.tokenize import Branch
from smollit.data.template.train_on import TrainOn, messages_with_loss

Truncate = Literal["right", "left-turns", "drop", "error"]
Tokenize = Callable[[list[Record]], Iterable[TokenizedRow | DroppedRow]]


def truncate_tokens(row: TokenizedRow, truncate: Truncate, max_length: int) -> TruncatedRow:
    """The row with the tokens that are kept of each segment.

    Raises:
        BadRow: If the row is too long and `truncate` allows no truncation, or the prompt of a pair leaves no room for
            responses.
    """
    if row.full_length > max_length and truncate in ("drop", "error"):
        reason = DropReason.TOO_LONG if truncate == "drop" else DropReason.TOO_LONG_ERROR
        raise BadRow(reason, f"{row.full_length} tokens, and max_length is {max_length}")
    if not isinstance(row.rendered.record, Preference):
        fits = row.full_length <= max_length
        kept = [(0, len(ids)) for ids in row.ids] if fits else _ranges(row, 0, {"shared": max_length})
        return TruncatedRow(row, _without_tail(row, kept))
    shared = row.size("shared")
    prompt = min(shared, prompt_room(row, max_length)) if truncate == "left-turns" else shared
    if prompt >= max_length:
        raise BadRow(DropReason.PROMPT_TOO_LONG, f"the prompt has {shared} tokens, and max_length is {max_length}")
    room = max_length - prompt  # of each response
    return TruncatedRow(row, _ranges(row, shared - prompt, {"shared": shared, "chosen": room, "rejected": room}))


def prompt_room(row: TokenizedRow, max_length: int) -> int:
    """Maximum number of tokens of a pair's prompt: what the longer response leaves, but at least a quarter."""
    return max(max_length - max(row.size("chosen"), row.size("rejected")), -(-max_length // 4))


def cut_turns(
    rows: list[TokenizedRow | DroppedRow], max_length: int, train_on: TrainOn, tokenize: Tokenize
) -> list[TokenizedRow | DroppedRow]:
    """The rows, with as few whole turns as possible removed from the start of those that are too long.

    Where the last exchange leaves no room for its response, the longest window of earlier turns that fits is kept.

    Args:
        rows: Tokenized rows.
        max_length: Maximum number of tokens of a sequence.
        train_on: Which turns count in the loss; at least one of them stays.
        tokenize: Renders and tokenizes records.
    """
    too_long = {
        index: row for index, row in enumerate(rows) if isinstance(row, TokenizedRow) and row.full_length > max_length
    }
    searches = {
        index: Search(row, shorter)
        for index, row in too_long.items()
        if (shorter := candidates(row.rendered.record, train_on))
    }
    _run(list(searches.values()), max_length, tokenize)
    found = [searches[index].result() if index in searches else row for index, row in enumerate(rows)]
    earlier = {
        index: [Search(row, window) for window in earlier_windows(row.rendered.record, train_on)]
        for index, row in too_long.items()
        if not _has_loss(found[index], max_length)
    }
    _run([search for windows in earlier.values() for search in windows], max_length, tokenize)
    for index, windows in earlier.items():
        kept = [row for search in windows if _has_loss(row := search.result(), max_length)]
        found[index] = max(kept, key=_num_messages, default=found[index])
    return found


def _run(searches: list["Search"], max_length: int, tokenize: Tokenize) -> None:
    """Binary search, all rows at once: each round renders and tokenizes one candidate of each."""
    while open_searches := [search for search in searches if not search.is_done]:
        tried = tokenize([search.candidates[search.middle] for search in open_searches])
        for search, row in zip(open_searches, tried, strict=True):
            search.narrow(row, max_length)


def candidates(record: Record, train_on: TrainOn) -> list[Record]:
    """The record without its first turns, from the fewest to the most: each starts with a user turn.

    The system text stays; of a pair, the last candidate has none.
    """
    if isinstance(record, Conversation):
        last = messages_with_loss(record.messages, train_on)[-1]
        system, starts = _user_turns(record.messages[:last])
        return [replace(record, messages=[*system, *record.messages[start:]]) for start in starts]
    if isinstance(record, Preference):
        system, starts = _user_turns(record.prompt)
        prompts = [[*system, *record.prompt[start:]] for start in starts]
        if system and len(record.prompt) > 1:
            prompts.append(record.prompt[(starts or [1])[-1] :])
        return [replace(record, prompt=prompt) for prompt in prompts]
    return []


def earlier_windows(record: Record, train_on: TrainOn) -> list[list[Record]]:
    """For each earlier turn with loss, the last first: the chat up to it, and its candidates."""
    if not isinstance(record, Conversation):
        return []
    ends = messages_with_loss(record.messages, train_on)[-2::-1]
    chats = [replace(record, messages=record.messages[: end + 1]) for end in ends]
    return [[chat, *candidates(chat, train_on)] for chat in chats]


@dataclass
class Search:
    """The search for the longest candidate that fits; the last one is taken if none does."""

    whole: TokenizedRow
    candidates: list[Record]
    low: int = 0
    high: int = field(init=False)
    tried: dict[int, TokenizedRow | DroppedRow] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.high = len(self.candidates) - 1

    @property
    def middle(self) -> int:
        """The candidate to try next."""
        return (self.low + self.high) // 2

    @property
    def is_done(self) -> bool:
        """Whether the result has been tried."""
        return self.low == self.high and self.high in self.tried

    def narrow(self, row: TokenizedRow | DroppedRow, max_length: int) -> None:
        """Keep the half that holds the result, given the tokens of the candidate in the middle."""
        middle = self.middle
        self.tried[middle] = row
        if isinstance(row, TokenizedRow) and _fits(row, max_length):
            self.high = middle
        else:
            self.low = min(middle + 1, self.high)

    def result(self) -> TokenizedRow | DroppedRow:
        """The candidate that was found, with the counts and the digest of the whole row."""
        row, whole = self.tried[self.high], self.whole
        if isinstance(row, DroppedRow):
            return replace(row, reached=whole)
        rendered = row.rendered._replace(num_control=whole.rendered.num_control, digests=whole.rendered.digests)
        kept = {id(message) for message in _messages(row.rendered.record)}
        lost = tuple(message for message in _messages(whole.rendered.record) if id(message) not in kept)
        return row._replace(rendered=rendered, full_length=whole.full_length, cut_turns=lost)


def _user_turns(messages: list[Message]) -> tuple[list[Message], list[int]]:
    """The system message, if any, and the indices of user turns after the first turn."""
    system = [message for message in messages[:1] if message["role"] == "system"]
    first = len(system) + 1
    return system, [index for index in range(first, len(messages)) if messages[index]["role"] == "user"]


def _messages(record: Record) -> list[Message]:
    if isinstance(record, Preference):
        return record.prompt
    return record.messages if isinstance(record, Conversation) else []


def _num_messages(row: TokenizedRow | DroppedRow) -> int:
    return len(_messages(row.rendered.record)) if isinstance(row, TokenizedRow) else 0


def _has_loss(row: TokenizedRow | DroppedRow, max_length: int) -> bool:
    """Whether a loss token is left after truncation on the right; token 0 is never one."""
    if not isinstance(row, TokenizedRow):
        return False
    starts = accumulate(map(len, row.ids), initial=0)
    loss = [
        (start, start + len(ids))
        for start, ids, s in zip(starts, row.ids, row.rendered.row.segments, strict=False)
        if s.in_loss
    ]
    return any(max(start, 1) < min(end, max_length) for start, end in loss)


def _fits(row: TokenizedRow, max_length: int) -> bool:
    if isinstance(row.rendered.record, Preference):
        return row.size("shared") <= prompt_room(row, max_length)
    return row.full_length <= max_length


def _ranges(row: TokenizedRow, skipped: int, room: dict[Branch, int]) -> list[Span]:
    """Kept tokens of each segment: none of the first `skipped`, and of each branch only those within its room."""
    positions: dict[Branch, int] = {"shared": 0, "chosen": 0, "rejected": 0}
    ranges = []
    for segment, ids in zip(row.rendered.row.segments, row.ids, strict=True):
        position = positions[segment.branch]
        start = min(max(skipped - position, 0), len(ids)) if segment.branch == "shared" else 0
        end = min(max(room[segment.branch] - position, start), len(ids))
        ranges.append((start, end))
        positions[segment.branch] = position + len(ids)
    return ranges


def _without_tail(row: TokenizedRow, ranges: list[Span]) -> list[Span]:
    """The ranges up to the last loss token: the text after it changes nothing."""
    segments = row.rendered.row.segments
    for last in reversed(range(len(ranges))):
        if segments[last].in_loss and ranges[last][0] < ranges[last][1]:
            return ranges[: last + 1] + [(0, 0)] * (len(ranges) - last - 1)
    return [(0, 0)] * len(ranges)
