"""Rows -> examples: parsed, rendered, tokenised in batches, cut to length; each bad row with its cause."""

import gc
import hashlib
import math
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

from smollit.data.encoding.columns import COLUMNS, chat_example, pair_example
from smollit.data.encoding.shown import Piece, Shown, show_draft
from smollit.data.encoding.truncate import (
    Draft,
    Record,
    Truncate,
    check_length,
    kept_ranges,
    shorten,
)
from smollit.data.formats.detect import Format, to_record
from smollit.data.formats.drop_reason import BadRow, DropReason
from smollit.data.formats.types import Conversation, Kind, Preference, Text, drop_nulls
from smollit.data.sources.raw import RAW, decode_line
from smollit.data.template.jinja import Span
from smollit.data.template.loss_spans import TrainOn
from smollit.data.template.template import ChatTemplate
from smollit.data.template.tokenize import SegmentedRow

__all__ = [
    "COLUMNS",
    "Piece",
    "Shown",
    "Truncate",
]
ControlText = Literal["escape", "drop", "error"]
FORMAT_VERSION = 3  # part of the cache's key: raise it when examples change
# Causes of dropped rows.

AT_ONCE = 100  # rows that are tokenised together
AHEAD = 2  # times as many are rendered before the first of them are waited for


@dataclass(frozen=True)
class EncodeOptions:
    """Everything that changes examples besides rows, tokenizer and template: part of the cache's key.

    Args:
        kind: `chat` for SFT, `preference` for pairs.
        max_length: Longest sequence in tokens; for pairs, of the prompt and either answer together.
        truncate: What becomes of longer rows. `right` cuts tokens on the right. `left-turns` cuts whole turns from the
            start, and of pairs the prompt's first tokens. `drop` drops the row, `error` refuses the run.
        train_on: `assistant` (all its turns), `last` (its last turn), or roles.
        control_text: What becomes of text in messages that spells a control token. `escape` makes plain pieces of it,
            `drop` drops the row, `error` refuses the run.
        min_score_gap: Pairs whose score_chosen - score_rejected is smaller are dropped; None keeps all.
        score_ties: Whether pairs with equal scores are kept.
    """

    kind: Kind
    max_length: int
    truncate: Truncate = "right"
    train_on: TrainOn = "assistant"
    control_text: ControlText = "escape"
    min_score_gap: float | None = None
    score_ties: Literal["keep", "drop"] = "keep"


@dataclass(frozen=True)
class Encoder:
    """Turns a batch of rows into columns of examples; called by `datasets.map`, in several processes if asked.

    Args:
        template: Renders and tokenises.
        options: What is trained, and what becomes of rows that do not fit.
        format: How rows are read.
    """

    template: ChatTemplate
    options: EncodeOptions
    format: Format

    def __call__(self, rows: dict[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        """Columns of examples, one per row; `problem` is empty where the row is good."""
        names = list(rows)
        with collector_paused():
            drafts = self.drafts(dict(zip(names, values, strict=True)) for values in zip(*rows.values(), strict=True))
            examples = [self.example(draft, index) for draft, index in zip(drafts, indices, strict=True)]
            return {name: [example[name] for example in examples] for name in examples[0]}

    def show(self, row: dict[str, Any], index: int) -> Shown:
        """A row as a person wants to see it, made as the examples are."""
        (draft,) = self.drafts([row])
        try:
            kept = self.kept(draft)
        except BadRow:  # said below, by the example
            kept = [(0, len(ids)) for ids in draft.ids]
        example = self.example(draft, index)
        return show_draft(self.template, draft, kept, index, (example["problem"], example["detail"]))

    def parse(self, row: dict[str, Any]) -> Record | BadRow:
        """A record, or what is wrong with the row."""
        try:
            # Arrow fills keys that a row lacks with nulls; in JSON a null is the author's.
            row = decode_line(row[RAW]) if RAW in row else {name: drop_nulls(value) for name, value in row.items()}
            return to_record(row, self.format)
        except BadRow as bad:
            return bad

    def drafts(self, rows: Iterable[dict[str, Any]]) -> Iterable[Draft]:
        """Rows parsed, rendered, tokenised, and shortened by whole turns if asked; in order, as they are ready."""
        drafts = self.redraft(map(self.parse, rows))
        if self.options.truncate == "left-turns":
            return shorten(list(drafts), self.options.max_length, self.options.train_on, self.redraft)
        return drafts

    def redraft(self, records: Iterable[Record | BadRow]) -> Iterator[Draft]:
        """Records rendered and tokenised, in order.

        Some are tokenised, outside Python, while the next are parsed and rendered, and those before become examples.
        """
        records = iter(records)
        waiting: deque[tuple[list[Draft], Future[list[list[int]]]]] = deque()
        with ThreadPoolExecutor(max_workers=2) as pool:  # one tokenises while the other hands its ids to Python
            while new := [self.draft(record) for record in islice(records, AT_ONCE)]:
                segments = [segment for draft in new for segment in draft.segments]
                waiting.append((new, pool.submit(self.template.tokenize, segments)))
                if len(waiting) > AHEAD:
                    yield from tokenised(*waiting.popleft())
            for drafts, ids in waiting:
                yield from tokenised(drafts, ids)

    def draft(self, record: Record | BadRow) -> Draft:
        """A record rendered, or its problem."""
        if isinstance(record, BadRow):
            return Draft(problem=record)
        draft = Draft(record)
        try:
            self.check(draft, record)
            draft.row = self.segments(draft, record)
            "".join(segment.text for segment in draft.segments).encode()  # the tokenizer refuses a lone surrogate
            draft.digest = digest(draft)
        except BadRow as bad:
            draft.problem = bad
        except UnicodeEncodeError as error:
            draft.row = SegmentedRow()
            draft.problem = BadRow(DropReason.INVALID_UNICODE, f"a lone surrogate at character {error.start}")
        return draft

    def check(self, draft: Draft, record: Record) -> None:
        """Count control text, and drop what the options drop before anything is rendered."""
        if isinstance(record, Text):
            found = self.template.control.pattern.findall(record.text)
        elif isinstance(record, Preference):
            found = self.template.control.find([*record.prompt, record.chosen, record.rejected])
        else:
            found = self.template.control.find(record.messages)
        draft.control = len(found)
        if found and self.options.control_text != "escape":
            cause = DropReason.CONTROL_TEXT if self.options.control_text == "drop" else DropReason.CONTROL_TEXT_ERROR
            raise BadRow(cause, f"{found[0]!r} is a control token of the tokenizer or the template")
        if isinstance(record, Preference):
            check_scores(record.score_gap, self.options)

    def segments(self, draft: Draft, record: Record) -> SegmentedRow:
        """Text to tokenize; of pairs, the prompt once, and both responses."""
        if isinstance(record, Text):
            return self.template.segment_text(record.text)
        if isinstance(record, Conversation):
            return self.template.segment_chat(record, self.options.train_on, has_control=draft.control > 0)
        return self.template.segment_pair(record, has_control=draft.control > 0)

    def kept(self, draft: Draft) -> list[Span]:
        """The tokens that are kept of each segment.

        Raises:
            BadRow: If the row can't be used.
        """
        if draft.problem:
            raise draft.problem
        self.template.verify_special_tokens(draft.row, draft.ids)
        check_length(draft, self.options.truncate, self.options.max_length)
        return kept_ranges(draft, self.options.truncate, self.options.max_length)

    def example(self, draft: Draft, index: int) -> dict[str, Any]:
        """Columns of one row; `row` is its number in the split, counted from 0."""
        columns: dict[str, Any] = {name: [] for name in COLUMNS[self.options.kind]}
        columns |= {"length": 0, "full_length": draft.full_length, "trained": 0, "cut": False}
        columns |= {"control": draft.control, "row": index, "problem": "", "detail": "", "digest": draft.digest}
        if self.options.kind == "preference":
            gap = draft.record.score_gap if isinstance(draft.record, Preference) else None
            columns["score_gap"] = math.nan if gap is None else gap
        try:
            kept = self.kept(draft)
            build = pair_example if self.options.kind == "preference" else chat_example
            return columns | build(draft, kept, self.options.max_length)
        except BadRow as bad:
            return columns | {"problem": bad.reason, "detail": bad.detail}


@contextmanager
def collector_paused() -> Iterator[None]:
    """Python's search for reference cycles waits: it would walk through all the token ids, an eighth of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def tokenised(drafts: list[Draft], ids: Future[list[list[int]]]) -> Iterator[Draft]:
    """Drafts with the token ids of their segments, once they are there."""
    found = iter(ids.result())
    for draft in drafts:
        draft.ids = [next(found) for _ in draft.segments]
        draft.full_length = draft.longest()
        yield draft


def check_scores(gap: float | None, options: EncodeOptions) -> None:
    """Drop pairs whose scores say too little.

    Raises:
        BadRow: If the scores are equal, too near to each other, or missing where they are needed.
    """
    if gap is None:
        if options.min_score_gap is not None:
            raise BadRow(DropReason.NO_SCORES, "`data.min_score_gap` needs score_chosen and score_rejected")
        return
    if gap == 0 and options.score_ties == "drop":
        raise BadRow(DropReason.TIED, "score_chosen and score_rejected are equal")
    if options.min_score_gap is not None and gap < options.min_score_gap:
        raise BadRow(
            DropReason.SMALL_GAP,
            f"score_chosen - score_rejected is {gap:g}, and min_score_gap {options.min_score_gap:g}",
        )


def digest(draft: Draft) -> int:
    """A hash of the whole text, of pairs of the prompt: 64 bits, signed as Arrow's int64."""
    text = "".join(segment.text for segment in draft.segments if segment.branch == "shared")
    whole = draft.row.chats[0].text if isinstance(draft.record, Conversation) else text
    return int.from_bytes(hashlib.blake2b(whole.encode(), digest_size=8).digest(), "big", signed=True)
