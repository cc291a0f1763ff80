"""Segments -> token ids, with the template's own special tokens distinct from text that spells them."""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate, compress
from typing import Literal, NamedTuple

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from smollit.data.formats.drop_reason import BadRow, DropReason
from smollit.data.template.control import ControlText
from smollit.data.template.in_text import TEXT, InText, reset
from smollit.data.template.parts import TurnPart
from smollit.data.template.rendering.jinja import Span
from smollit.data.template.rendering.renderer import RenderedChat
from smollit.errors import first_line
from smollit.paths import check_folder

MAX_COUNTS = 10_000  # texts between contents are few; those of tool calls may be many
Branch = Literal["shared", "chosen", "rejected"]


class Segment(NamedTuple):
    """A piece of text that is tokenized separately.

    Args:
        text: The text.
        in_loss: Whether its tokens count in the loss.
        message: Index of the message that it belongs to or precedes.
        escaped: Whether it spells a control token without being one.
        branch: Whether it belongs to both sequences of a pair or to one of them; in a chat, always `shared`.
        starts_turn: Whether inference starts here, and the loss perhaps later.
        follows: The added token that stands before it, or `TEXT`, if tokens depend on that (in_text.py); else None.
    """

    text: str
    in_loss: bool
    message: int = 0
    escaped: bool = False
    branch: Branch = "shared"
    starts_turn: bool = False
    follows: str | None = None


class SegmentedRow(NamedTuple):
    """A row of a data set, split into segments.

    Args:
        chats: The rendered chat; of a pair, the one with the chosen and the one with the rejected response.
        segments: The text up to the end of the last loss span; of a pair, the prompt once and both responses.
        num_special: Number of special tokens that the template writes into the segments of each chat; None if unknown.
    """

    chats: tuple[RenderedChat, ...] = ()
    segments: tuple[Segment, ...] = ()
    num_special: tuple[int | None, ...] = ()


class SegmentTokenizer:
    """Tokenizes segments.

    Args:
        tokenizer: The tokenizer; it must be a fast one.
        control: The control text that escaped segments spell.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, control: ControlText) -> None:
        self.tokenizer = tokenizer
        self.control = control
        self.in_text = InText(tokenizer, control)
        self._special_counts: dict[str, int] = {}

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, tokenized separately. The tokenizer adds no special tokens: the template has them."""
        return self.in_text.ids(texts)

    def tokenize(self, segments: Sequence[Segment]) -> list[list[int]]:
        """Token ids of each segment separately; special tokens that an escaped segment spells are plain text.

        A text that several segments have, as the prompt of several pairs, is tokenized once.
        """
        known: dict[tuple[str | None, bool], dict[str, list[int]]] = {}
        for segment in segments:
            known.setdefault((segment.follows, segment.escaped), {})[segment.text] = []
        for (follows, escaped), texts in known.items():
            found = self.in_text.ids(list(texts), follows, escape=escaped)
            texts.update(zip(list(texts), found, strict=True))
        return [known[segment.follows, segment.escaped][segment.text] for segment in segments]

    def segment_text(self, text: str) -> SegmentedRow:
        """A plain text after BOS, if the tokenizer adds one before texts, and before EOS, if it has one.

        Its control text is kept: people write chats out as text, with their control tokens.
        """
        bos, eos = str(self.tokenizer.bos_token or ""), str(self.tokenizer.eos_token or "")
        before = [Segment(bos, False)] if self.adds_bos and not text.startswith(bos) else []
        after = [Segment(eos, True)] if eos and not text.rstrip().endswith(eos) else []
        return SegmentedRow(segments=(*before, Segment(text, True), *after))

    def cut(self, chat: RenderedChat, parts: list[TurnPart], *, has_control: bool) -> SegmentedRow:
        """The text up to the end of the last part, split where parts and control text start and end."""
        said = self.control.without_given(chat)
        control = self.control.locate(said) if has_control or chat.given else []  # joined turns may make control text
        segments: list[Segment] = []
        cursor = 0
        for start, end, message, in_loss, starts_turn in parts:
            assert cursor <= start <= end, (cursor, start, end)
            segments += cut_at(chat.text, (cursor, start), control, in_loss=False, message=message)
            pieces = cut_at(chat.text, (start, end), control, in_loss=in_loss, message=message)
            segments += [pieces[0]._replace(starts_turn=True), *pieces[1:]] if starts_turn and pieces else pieces
            cursor = end
        return SegmentedRow((chat,), tuple(self._placed(segments)), (self.count_written(said, cursor),))

    def token_ends(self, segment: Segment) -> list[int]:
        """Where each token of a segment ends, in characters."""
        [(_, ends)] = self.in_text.tokens([segment.text], segment.follows, escape=segment.escaped)
        return [*accumulate(ends[:-1], max), len(segment.text)] if ends else []

    def count_special(self, ids: list[int]) -> int:
        """Number of special tokens among token ids."""
        return sum(map(self.control.ids.__contains__, ids))

    def count_written(self, chat: RenderedChat, end: int) -> int | None:
        """Number of special tokens that the template writes between the contents of a chat, up to character `end`.

        None if the contents were not located.
        """
        if chat.contents is None:
            return None
        total, cursor = 0, 0
        for start, stop in chat.contents:
            if start >= end:
                break
            total += self._count(chat.text[cursor:start])
            cursor = stop
        return total + self._count(chat.text[cursor:end])

    def verify_special_tokens(self, row: SegmentedRow, ids: list[list[int]]) -> None:
        """Refuse a row unless the token ids of its segments hold as many special tokens as the template writes.

        Raises:
            BadRow: If they hold more or fewer.
        """
        branches = ("chosen", "rejected") if len(row.chats) > 1 else ("shared",)
        for branch, expected in zip(branches, row.num_special, strict=False):
            own = [segment.branch in ("shared", branch) for segment in row.segments]
            found = sum(map(self.count_special, compress(ids, own)))
            if expected is not None and found != expected:
                raise BadRow(
                    DropReason.UNESCAPABLE,
                    f"{found} special tokens, and the template writes {expected}: text next to one of its markers"
                    " reads as another marker",
                )

    @cached_property
    def adds_bos(self) -> bool:
        """Whether the tokenizer adds BOS before texts."""
        bos = self.tokenizer.bos_token_id
        return bos is not None and self.tokenizer("a")["input_ids"][:1] == [bos]

    @cached_property
    def hash(self) -> str:
        """Hash of all that changes tokens; padding and truncation, which others may set, do not count."""
        backend = self.tokenizer.backend_tokenizer
        reset(backend, escape=False)
        placed = " in text" if self.in_text.matters else ""  # version 0.2 gave other tokens
        return hashlib.sha256(f"{backend.to_str()}{placed}".encode()).hexdigest()

    def _placed(self, segments: list[Segment]) -> list[Segment]:
        """The segments of a chat with what each of them follows, if tokens depend on that."""
        if not self.in_text.matters:
            return segments
        ends = [TEXT if segment.escaped else self.in_text.end_of(segment.text) for segment in segments]
        return [segment._replace(follows=end) for segment, end in zip(segments, [None, *ends], strict=False)]

    def _count(self, text: str) -> int:
        """Number of special tokens in a text that the template wrote."""
        if len(self._special_counts) > MAX_COUNTS:
            self._special_counts.clear()
        if text not in self._special_counts:
            self._special_counts[text] = self.count_special(self.encode([text])[0])
        return self._special_counts[text]


def join_pair(chosen: SegmentedRow, rejected: SegmentedRow) -> SegmentedRow | None:
    """Two chats with one prompt as a pair: the prompt once, and both responses; None if the prompts differ."""
    prompt, other = ([segment for segment in row.segments if not segment.in_loss] for row in (chosen, rejected))
    if prompt != other:
        return None
    first, second = ([segment for segment in row.segments if segment.in_loss] for row in (chosen, rejected))
    segments = (
        *prompt,
        *(segment._replace(branch="chosen") for segment in first),
        *(segment._replace(branch="rejected") for segment in second),
    )
    return SegmentedRow(chosen.chats + rejected.chats, segments, chosen.num_special + rejected.num_special)


def cut_at(text: str, span: Span, control: list[Span], *, in_loss: bool, message: int) -> list[Segment]:
    """The characters of a span as one segment, or as several around control text, which is escaped."""
    segments, (cursor, end) = [], span
    if not control:
        return [Segment(text[cursor:end], in_loss, message)] if cursor < end else []
    for start, stop in control:
        if cursor <= start and stop <= end:
            segments.append(Segment(text[cursor:start], in_loss, message))
            segments.append(Segment(text[start:stop], in_loss, message, escaped=True))
            cursor = stop
    segments.append(Segment(text[cursor:end], in_loss, message))
    return [segment for segment in segments if segment.text]


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a Hub id or a local folder.

    Raises:
        ValueError: If it can't be loaded, or has no fast (Rust) version.
    """
    check_folder(name, "tokenizer_name")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # of many types: the Hub's, the network's, and those of broken files
        raise ValueError(
            f"could not load the tokenizer `{name}` ({first_line(error)}). Check the name and the network, or set"
            " `data.tokenizer_name` to a local folder"
        ) from error
    if not tokenizer.is_fast:
        raise ValueError(f"the tokenizer `{name}` has no fast version, which smollit needs")
    return tokenizer
