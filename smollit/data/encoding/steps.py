"""The steps from a row to an example: rendered, tokenized, truncated, encoded; or dropped.

Each step is frozen and holds the previous one. The first step, parsed, is the record itself.
"""

import hashlib
from dataclasses import dataclass
from typing import Any, NamedTuple

from smollit.data.formats.drop_reason import BadRow, DropReason
from smollit.data.formats.types import Conversation, Kind, Message, Preference, Record
from smollit.data.template.rendering.jinja import Span
from smollit.data.template.tokenize import Branch, SegmentedRow

TOKEN_COLUMNS: dict[Kind, tuple[str, ...]] = {
    "chat": ("input_ids", "spans"),
    "preference": ("prompt_ids", "chosen_ids", "rejected_ids"),
}

PAIR_NUMBERS = ("prompt_digest", "chosen_digest", "rejected_digest", "chosen_tokens")  # which pairs share what


class RenderedRow(NamedTuple):
    """A record as text, split into segments.

    Args:
        record: What the row means.
        row: Its rendered chats and segments.
        num_control: Number of control texts in its messages.
        digests: Hashes of the whole row and of its prompt; of a pair, of its prompt first.
        unprinted: Names of what the row says and the template does not print.
    """

    record: Record
    row: SegmentedRow
    num_control: int
    digests: tuple[int, int]
    unprinted: tuple[str, ...] = ()


class TokenizedRow(NamedTuple):
    """A rendered row with the token ids of each segment.

    Args:
        rendered: The previous step.
        ids: Token ids of each segment.
        full_length: Tokens of the longest sequence before any truncation: what `max_length` is compared with.
        cut_turns: Turns that were dropped from the start.
    """

    rendered: RenderedRow
    ids: list[list[int]]
    full_length: int
    cut_turns: tuple[Message, ...] = ()

    @classmethod
    def of(cls, rendered: RenderedRow, ids: list[list[int]]) -> "TokenizedRow":
        """A row that is not truncated yet."""
        sizes: dict[Branch, int] = {"shared": 0, "chosen": 0, "rejected": 0}
        for segment, tokens in zip(rendered.row.segments, ids, strict=True):
            sizes[segment.branch] += len(tokens)
        return cls(rendered, ids, sizes["shared"] + max(sizes["chosen"], sizes["rejected"]))

    def size(self, branch: Branch) -> int:
        """Number of tokens of a branch."""
        segments = self.rendered.row.segments
        return sum(len(ids) for segment, ids in zip(segments, self.ids, strict=True) if segment.branch == branch)


class TruncatedRow(NamedTuple):
    """A tokenized row and the tokens that are kept.

    Args:
        tokenized: The previous step.
        kept: The tokens [start, end) that are kept of each segment.
    """

    tokenized: TokenizedRow
    kept: list[Span]

    @property
    def is_truncated(self) -> bool:
        """Whether the row lost turns or tokens."""
        num_kept = sum(end - start for start, end in self.kept)
        return bool(self.tokenized.cut_turns) or num_kept < sum(map(len, self.tokenized.ids))

    def ids(self, branch: Branch) -> list[int]:
        """The kept token ids of a branch."""
        found: list[int] = []
        segments = self.tokenized.rendered.row.segments
        for segment, ids, (start, end) in zip(segments, self.tokenized.ids, self.kept, strict=True):
            if segment.branch == branch:
                found += ids[start:end]
        return found


class EncodedRow(NamedTuple):
    """A row that became an example.

    Args:
        truncated: The previous step.
        columns: Its token ids, loss spans and counts.
    """

    truncated: TruncatedRow
    columns: dict[str, Any]


@dataclass(frozen=True, slots=True)
class DroppedRow:
    """A row that can't be used.

    Args:
        bad: The reason and the detail.
        reached: The last step with tokens, if the row reached one.
    """

    bad: BadRow
    reached: TokenizedRow | TruncatedRow | None = None

    @property
    def full_length(self) -> int:
        """Its tokens before any truncation, if it reached them; else 0."""
        if self.reached is None:
            return 0
        return (
            self.reached.full_length if isinstance(self.reached, TokenizedRow) else self.reached.tokenized.full_length
        )


def digests(record: Record, row: SegmentedRow) -> tuple[int, int]:
    """Hashes of a chat and of its prompt, which ends before the first response; of a pair's prompt and of the pair."""
    loss = [number for number, segment in enumerate(row.segments) if segment.in_loss]
    turns = loss
    if isinstance(record, Conversation):  # prompts may be in the loss too
        messages = row.chats[0].messages
        turns = [number for number in loss if messages[row.segments[number].message]["role"] == "assistant"]
    prompt = "".join(segment.text for segment in row.segments[: next(iter(turns or loss), 0)])
    if isinstance(record, Conversation):
        return _digest(row.chats[0].text), _digest(prompt)
    whole = "\0".join(f"{segment.branch} {segment.text}" for segment in row.segments)
    return (_digest(prompt), _digest(whole)) if isinstance(record, Preference) else (_digest(whole), _digest(prompt))


def has_turns_after_loss(rendered: RenderedRow) -> bool:
    """Whether a chat ends with turns that no response follows, and that are not in the loss themselves."""
    if not isinstance(rendered.record, Conversation):
        return False
    end, last = rendered.record.messages[-1], rendered.row.segments[-1].message
    return end["role"] in ("system", "user", "tool") and rendered.row.chats[0].messages[last] is not end


def _digest(text: str) -> int:
    """64 bits, signed as Arrow's int64."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big", signed=True)


def encode_chat(row: TruncatedRow, max_length: int) -> EncodedRow:
    """Ids of a chat or text, and its loss spans [start, end), flat.

    Raises:
        BadRow: If no loss token is left.
    """
    ids: list[int] = []
    spans: list[int] = []
    message = -1  # of the last span: control text in a turn divides it into segments, which are one span
    response_start: dict[str, int] = {}
    segments = row.tokenized.rendered.row.segments
    for segment, tokens, (start, end) in zip(segments, row.tokenized.ids, row.kept, strict=True):
        if segment.starts_turn:
            response_start = {"response_start": len(ids)}
        first = max(len(ids), 1)  # token 0 has no prefix: nothing can predict it
        ids += tokens[start:end]
        if segment.in_loss and first < len(ids):
            if segment.message == message and spans[-1] == first:
                spans[-1] = len(ids)
            else:
                spans += (first, len(ids))
            message = segment.message
    if not spans:
        raise BadRow(DropReason.NO_LOSS_TOKENS, _why_no_loss_tokens(row.tokenized, max_length))
    num_loss_tokens = sum(spans[1::2]) - sum(spans[::2])
    columns = {"input_ids": ids, "spans": spans, "length": len(ids), "loss_tokens": num_loss_tokens}
    return EncodedRow(row, columns | response_start)


def encode_pair(row: TruncatedRow) -> EncodedRow:
    """Ids of prompt, chosen and rejected response.

    Raises:
        BadRow: If the prompt is empty, or both responses are the same.
    """
    if not row.tokenized.size("shared"):
        raise BadRow(DropReason.EMPTY_PROMPT, "the prompt has no tokens")
    prompt, chosen, rejected = row.ids("shared"), row.ids("chosen"), row.ids("rejected")
    if chosen == rejected:
        whole = TruncatedRow(row.tokenized, [(0, len(ids)) for ids in row.tokenized.ids])
        if whole.ids("chosen") == whole.ids("rejected"):
            raise _why_identical(row.tokenized.rendered.record)
        same = f"the first {len(chosen)} tokens" if len(chosen) > 1 else "their first token"
        raise BadRow(DropReason.IDENTICAL_AFTER_CUT, f"the responses are identical in {same}")
    columns = {
        "prompt_ids": prompt,
        "chosen_ids": chosen,
        "rejected_ids": rejected,
        # Equal token ids have equal digests: of numbers, Python's hash is the same in every process.
        "prompt_digest": hash(tuple(prompt)),
        "chosen_digest": hash(tuple(chosen)),
        "rejected_digest": hash(tuple(rejected)),
        "chosen_tokens": len(chosen),
        "length": len(prompt) + len(chosen) + len(rejected),
        "loss_tokens": len(chosen) + len(rejected),
    }
    return EncodedRow(row, columns)


def _why_identical(record: Record) -> BadRow:
    """What makes two responses the same text: the rows, or a template that does not print in what they differ."""
    assert isinstance(record, Preference)
    keys = [key for key in record.chosen | record.rejected if record.chosen.get(key) != record.rejected.get(key)]
    if not keys:
        return BadRow(DropReason.IDENTICAL, "`chosen` and `rejected` are the same text")
    said = f"`chosen` and `rejected` differ in {', '.join(keys)}, and the template prints the same text for both"
    return BadRow(DropReason.IDENTICAL_AS_PRINTED, said)


def _why_no_loss_tokens(row: TokenizedRow, max_length: int) -> str:
    first = next((n for n, segment in enumerate(row.rendered.row.segments) if segment.in_loss), 0)
    start = sum(map(len, row.ids[:first]))
    if start < max_length:  # so it is the row's first token, alone
        return "the only loss token is the row's first, which nothing predicts"
    return f"the first loss token is token {start}, and max_length is {max_length}"
