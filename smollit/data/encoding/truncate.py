"""What of a row is kept when it is longer than `max_length`: whole turns from the start, then tokens."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

from smollit.data.formats.drop_reason import BadRow, DropReason
from smollit.data.formats.types import Conversation, Message, Preference, Text
from smollit.data.template.jinja import Span
from smollit.data.template.loss_spans import TrainOn, messages_with_loss
from smollit.data.template.tokenize import Branch, Segment, SegmentedRow

Truncate = Literal["right", "left-turns", "drop", "error"]
Record = Conversation | Preference | Text


@dataclass
class Draft:
    """A row on its way to an example.

    Args:
        record: What the row holds.
        row: Its rendered chats and the segments of their text.
        ids: Token ids of each segment.
        control: Number of control texts in its messages.
        full_length: Tokens before any cut; of a pair, of the prompt and the longer answer.
        digest: Hash of the rendered text.
        turns_cut: Messages that were cut from the start.
        problem: Why the row can't be used.
    """

    record: Record | None = None
    row: SegmentedRow = field(default_factory=SegmentedRow)
    ids: list[list[int]] = field(default_factory=list)
    control: int = 0
    full_length: int = 0
    digest: int = 0
    turns_cut: list[Message] = field(default_factory=list)
    problem: BadRow | None = None

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Text to tokenize, in order."""
        return self.row.segments

    def size(self, branch: Branch) -> int:
        """Number of tokens of a branch."""
        return sum(len(ids) for segment, ids in zip(self.segments, self.ids, strict=True) if segment.branch == branch)

    def longest(self) -> int:
        """Tokens of the longest sequence: what `max_length` is compared with."""
        return self.size("shared") + max(self.size("chosen"), self.size("rejected"))


def check_length(draft: Draft, truncate: Truncate, max_length: int) -> None:
    """Refuse a row that is too long where the user wants no cuts.

    Raises:
        BadRow: If `truncate` is `drop` or `error`, and the row is too long.
    """
    if draft.full_length > max_length and truncate in ("drop", "error"):
        cause = DropReason.TOO_LONG if truncate == "drop" else DropReason.TOO_LONG_ERROR
        raise BadRow(cause, f"{draft.full_length} tokens, and max_length is {max_length}")


def kept_ranges(draft: Draft, truncate: Truncate, max_length: int) -> list[Span]:
    """The tokens [start, end) that are kept of each segment.

    Raises:
        BadRow: If the prompt of a pair leaves no room for answers.
    """
    shared = draft.size("shared")
    if not isinstance(draft.record, Preference):
        return _without_tail(draft, _ranges(draft, 0, {"shared": max_length}))
    room = max_length
    if truncate == "left-turns":
        room = prompt_room(draft, max_length)
    elif shared >= max_length:
        raise BadRow(DropReason.PROMPT_TOO_LONG, f"the prompt has {shared} tokens, and max_length is {max_length}")
    kept = min(shared, room)
    if kept >= max_length:
        raise BadRow(DropReason.PROMPT_TOO_LONG, f"max_length is {max_length}, which leaves no room for an answer")
    answer = max_length - kept
    return _ranges(draft, shared - kept, {"shared": shared, "chosen": answer, "rejected": answer})


def prompt_room(draft: Draft, max_length: int) -> int:
    """Tokens that the prompt of a pair may take: what the longer answer leaves, but at least a quarter of all."""
    return max(max_length - max(draft.size("chosen"), draft.size("rejected")), -(-max_length // 4))


def shorten(
    drafts: list[Draft], max_length: int, train_on: TrainOn, redraft: Callable[[list[Record]], Iterable[Draft]]
) -> list[Draft]:
    """The drafts, with as few whole turns as possible cut from the start of those that are too long.

    Searched by halves, all drafts at once: each round renders and tokenises one candidate of each.

    Args:
        drafts: Of a batch of rows, tokenised.
        max_length: Tokens that a sequence may have.
        train_on: What is trained; something of it stays.
        redraft: Renders and tokenises records.
    """
    searches = [
        Search(draft, found)
        for draft in drafts
        if not draft.problem and draft.full_length > max_length and (found := candidates(draft.record, train_on))
    ]
    while asked := [search for search in searches if search.low < search.high or search.high not in search.tried]:
        tries = redraft([search.candidates[search.middle()] for search in asked])
        for search, draft in zip(asked, tries, strict=True):
            search.tell(draft, max_length)
    shortened = {id(search.draft): search.result() for search in searches}
    return [shortened.get(id(draft), draft) for draft in drafts]


@dataclass
class Search:
    """The search for the longest candidate that fits; the last one is taken if none does."""

    draft: Draft
    candidates: list[Record]
    low: int = 0
    high: int = -1
    tried: dict[int, Draft] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.high = len(self.candidates) - 1

    def middle(self) -> int:
        """The candidate to try next."""
        return (self.low + self.high) // 2

    def tell(self, draft: Draft, max_length: int) -> None:
        """What came of it."""
        middle = self.middle()
        self.tried[middle] = draft
        if not draft.problem and _fits(draft, max_length):
            self.high = middle
        else:
            self.low = min(middle + 1, self.high)

    def result(self) -> Draft:
        """The candidate that was found, with what the report counts of the whole row."""
        draft, whole = self.tried[self.high], self.draft
        draft.full_length, draft.digest, draft.control = whole.full_length, whole.digest, whole.control
        kept = {id(message) for message in _messages(draft.record)}
        draft.turns_cut = [message for message in _messages(whole.record) if id(message) not in kept]
        return draft


def candidates(record: Record | None, train_on: TrainOn) -> list[Record]:
    """The record without its first turns, from the fewest to the most: each starts with a user turn.

    The system text stays; of a pair, the last candidate has none.
    """
    if isinstance(record, Conversation):
        last = messages_with_loss(record.messages, train_on)[-1]
        system, starts = _starts(record.messages[:last])
        return [Conversation([*system, *record.messages[start:]]) for start in starts]
    if isinstance(record, Preference):
        system, starts = _starts(record.prompt)
        prompts = [[*system, *record.prompt[start:]] for start in starts]
        if system and len(record.prompt) > 1:
            prompts.append(record.prompt[(starts or [1])[-1] :])
        return [Preference(prompt, record.chosen, record.rejected, record.score_gap) for prompt in prompts]
    return []


def _starts(messages: list[Message]) -> tuple[list[Message], list[int]]:
    """The system message, if any, and where user turns stand behind the first turn."""
    system = [message for message in messages[:1] if message["role"] == "system"]
    first = len(system) + 1
    return system, [index for index in range(first, len(messages)) if messages[index]["role"] == "user"]


def _messages(record: Record | None) -> list[Message]:
    if isinstance(record, Preference):
        return record.prompt
    return record.messages if isinstance(record, Conversation) else []


def _fits(draft: Draft, max_length: int) -> bool:
    if isinstance(draft.record, Preference):
        return draft.size("shared") <= prompt_room(draft, max_length)
    return draft.longest() <= max_length


def _ranges(draft: Draft, skipped: int, room: dict[Branch, int]) -> list[Span]:
    """Kept tokens of each segment: none of the first `skipped`, and of each branch only what stands before its room."""
    places: dict[Branch, int] = {"shared": 0, "chosen": 0, "rejected": 0}
    ranges = []
    for segment, ids in zip(draft.segments, draft.ids, strict=True):
        place = places[segment.branch]
        start = min(max(skipped - place, 0), len(ids)) if segment.branch == "shared" else 0
        end = min(max(room[segment.branch] - place, start), len(ids))
        ranges.append((start, end))
        places[segment.branch] = place + len(ids)
    return ranges


def _without_tail(draft: Draft, ranges: list[Span]) -> list[Span]:
    """The ranges up to the last trained token: what is left of the text behind it changes nothing."""
    trained = [n for n, (start, end) in enumerate(ranges) if draft.segments[n].in_loss and start < end]
    last = trained[-1] if trained else -1
    return [*ranges[: last + 1], *[(0, 0)] * (len(ranges) - last - 1)]
