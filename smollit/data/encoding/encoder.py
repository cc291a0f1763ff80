"""Encoder: rows -> examples, in batches. Each row goes through the steps of steps.py, or is dropped with its reason."""

import gc
import math
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from smollit.data.encoding.options import EncodeOptions, verify_scores
from smollit.data.encoding.report import WITHOUT_LOSS
from smollit.data.encoding.steps import (
    PAIR_NUMBERS,
    TOKEN_COLUMNS,
    DroppedRow,
    EncodedRow,
    RenderedRow,
    TokenizedRow,
    TruncatedRow,
    digests,
    encode_chat,
    encode_pair,
    has_turns_after_loss,
)
from smollit.data.encoding.truncate import cut_turns, truncate_tokens
from smollit.data.formats.converters import decode_row, to_records
from smollit.data.formats.drop_reason import BadRow, DropReason
from smollit.data.formats.format import Format
from smollit.data.formats.types import Conversation, Preference, Record, Text
from smollit.data.sources.files import Row
from smollit.data.template.parts import named_parts
from smollit.data.template.template import ChatTemplate
from smollit.data.template.tokenize import SegmentedRow
from smollit.data.template.unprinted import EARLIER

FORMAT_VERSION = 10  # part of the cache key: raise it when examples change
ROWS_AT_ONCE = 100  # rows that are tokenized together
BATCHES_AHEAD = 2  # batches of rows that are rendered before the encoder waits for the tokens of the first


@dataclass(frozen=True)
class Encoder:
    """Turns batches of rows into columns of examples. `datasets.map` calls it, in several processes if requested.

    Args:
        template: Renders and tokenizes.
        options: Which tokens are in the loss, and how rows that do not fit are handled.
        format: How rows are read.
    """

    template: ChatTemplate
    options: EncodeOptions
    format: Format

    def __call__(self, rows: dict[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        """Columns of examples, in the order of the rows, of which each gives at least one.

        `problem` is empty if an example is good, and `row` is the number of its row.
        """
        names = list(rows)
        numbers: list[int] = []  # of the row of each record, as they are parsed
        with collector_paused():
            decoded = (dict(zip(names, values, strict=True)) for values in zip(*rows.values(), strict=True))
            encoded = self._encode(self._numbered(zip(decoded, indices, strict=True), numbers))
            blank = self.blank_columns()
            examples = [blank | self.columns(row, numbers[position]) for position, row in enumerate(encoded)]
            return {name: [example[name] for example in examples] for name in examples[0]}

    def encode(self, rows: Iterable[Row]) -> Iterator[EncodedRow | DroppedRow]:
        """The last step of each record of the rows, in order; it holds the previous steps."""
        return self._encode(chain.from_iterable(map(self.parse, rows)))

    def _encode(self, records: Iterable[Record | DroppedRow]) -> Iterator[EncodedRow | DroppedRow]:
        tokenized: Iterable[TokenizedRow | DroppedRow] = self.tokenize(records)
        if self.options.truncate == "left-turns":
            tokenized = cut_turns(list(tokenized), self.options.max_length, self.options.train_on, self.tokenize)
        return map(self.finish, tokenized)

    def parse(self, row: Row) -> list[Record | DroppedRow]:
        """What a row means, according to its format: one record, or several."""
        try:
            records = to_records(decode_row(row), self.format)
        except BadRow as bad:
            return [DroppedRow(bad)]
        return [DroppedRow(record) if isinstance(record, BadRow) else record for record in records]

    def _numbered(self, rows: Iterable[tuple[Row, int]], numbers: list[int]) -> Iterator[Record | DroppedRow]:
        """The records of rows; `numbers` gets the number of the row of each.

        Raises:
            ValueError: If the user's function fails, with the number of the row.
        """
        for row, number in rows:
            try:
                records = self.parse(row)
            except ValueError as error:
                raise ValueError(f"row {number}: {error}") from error
            numbers += [number] * len(records)
            yield from records

    def render(self, record: Record | DroppedRow) -> RenderedRow | DroppedRow:
        """A record as text, split into segments."""
        if isinstance(record, DroppedRow):
            return record
        try:
            num_control = self._count_control(record)
            if isinstance(record, Preference):
                verify_scores(record.score_gap, self.options)
            row = self._segment(record, has_control=num_control > 0)
            hashed = digests(record, row)  # fails at a lone surrogate, which the tokenizer refuses
            return RenderedRow(record, row, num_control, hashed, self._unprinted(row))
        except BadRow as bad:
            return DroppedRow(bad)
        except UnicodeEncodeError as error:
            return DroppedRow(BadRow(DropReason.INVALID_UNICODE, f"a lone surrogate at character {error.start}"))

    def tokenize(self, records: Iterable[Record | DroppedRow]) -> Iterator[TokenizedRow | DroppedRow]:
        """Records rendered and tokenized, in order.

        A batch of rows is tokenized, outside Python, while the next one is parsed and rendered, and the previous one
        becomes examples.
        """
        records = iter(records)
        waiting: deque[tuple[list[RenderedRow | DroppedRow], Future[list[list[int]]]]] = deque()
        with ThreadPoolExecutor(max_workers=2) as pool:  # one tokenizes while the other hands its ids to Python
            while rows := [self.render(record) for record in islice(records, ROWS_AT_ONCE)]:
                segments = [segment for row in rows if isinstance(row, RenderedRow) for segment in row.row.segments]
                waiting.append((rows, pool.submit(self.template.tokenize, segments)))
                if len(waiting) > BATCHES_AHEAD:
                    yield from _with_ids(*waiting.popleft())
            for rows, ids in waiting:
                yield from _with_ids(rows, ids)

    def finish(self, row: TokenizedRow | DroppedRow) -> EncodedRow | DroppedRow:
        """The example of a tokenized row: verified, truncated to `max_length`, encoded."""
        if isinstance(row, DroppedRow):
            return row
        reached: TokenizedRow | TruncatedRow = row
        try:
            self.template.verify_special_tokens(row.rendered.row, row.ids)
            reached = truncated = truncate_tokens(row, self.options.truncate, self.options.max_length)
            if self.options.kind == "preference":
                return encode_pair(truncated)
            return encode_chat(truncated, self.options.max_length)
        except BadRow as bad:
            return DroppedRow(bad, reached)

    def blank_columns(self) -> dict[str, Any]:
        """Every column of an example, with the values of a row that has nothing."""
        columns: dict[str, Any] = {name: [] for name in TOKEN_COLUMNS[self.options.kind]}
        columns |= {"length": 0, "full_length": 0, "loss_tokens": 0, "truncated": False}
        columns |= {"control": 0, "row": 0, "problem": "", "detail": "", "trailing": False}
        columns |= {"digest": 0, "other_digest": 0, "unprinted": []}
        if self.options.kind == "preference":
            columns |= dict.fromkeys(PAIR_NUMBERS, 0) | {"score_gap": math.nan}
        if named_parts(self.options.train_on):
            columns["response_start"] = 0
        return columns

    def columns(self, row: EncodedRow | DroppedRow, index: int) -> dict[str, Any]:
        """The columns that one example has; `index` is the number of its row in the split, counted from 0."""
        if isinstance(row, DroppedRow):
            bad = row.bad
            return {"row": index, "full_length": row.full_length, "problem": bad.reason, "detail": bad.detail}
        tokenized, rendered = row.truncated.tokenized, row.truncated.tokenized.rendered
        columns = {
            "row": index,
            "full_length": tokenized.full_length,
            "truncated": row.truncated.is_truncated,
            "control": 0 if isinstance(rendered.record, Text) else rendered.num_control,  # a text keeps its tokens
            "digest": rendered.digests[0],
            "other_digest": rendered.digests[1],
            "trailing": has_turns_after_loss(rendered),
            "unprinted": list(rendered.unprinted),
            **row.columns,
        }
        if isinstance(rendered.record, Preference) and rendered.record.score_gap is not None:
            columns["score_gap"] = rendered.record.score_gap
        return columns

    def _count_control(self, record: Record) -> int:
        """Number of control texts in the messages.

        Raises:
            BadRow: If there are some, and `control_text` does not escape them.
        """
        if isinstance(record, Text):
            found = self.template.control.pattern.findall(record.text)
        else:
            found = self.template.control.find_in(record)
        if found and self.options.control_text != "escape":
            reason = DropReason.CONTROL_TEXT if self.options.control_text == "drop" else DropReason.CONTROL_TEXT_ERROR
            raise BadRow(reason, f"{found[0]!r} is a control token of the tokenizer or the template")
        return len(found)

    def _unprinted(self, row: SegmentedRow) -> tuple[str, ...]:
        """What the template does not print; of earlier turns whether they count in the loss is said too."""
        names = self.template.unprinted(row)
        if self.options.kind == "chat" and self.options.train_on != "last":
            return names
        return tuple(f"{name}{WITHOUT_LOSS}" if name.endswith(EARLIER) else name for name in names)

    def _segment(self, record: Record, *, has_control: bool) -> SegmentedRow:
        if isinstance(record, Text):
            return self.template.segment_text(record.text)
        if isinstance(record, Conversation):
            return self.template.segment_chat(record, self.options.train_on, has_control=has_control)
        return self.template.segment_pair(record, has_control=has_control)


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pause Python's garbage collector: it would traverse all token ids, which takes an eighth of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _with_ids(
    rows: list[RenderedRow | DroppedRow], ids: Future[list[list[int]]]
) -> Iterator[TokenizedRow | DroppedRow]:
    """Rows with the token ids of their segments, as soon as they are available."""
    found = iter(ids.result())
    for row in rows:
        if isinstance(row, DroppedRow):
            yield row
        else:
            yield TokenizedRow.of(row, list(islice(found, len(row.row.segments))))
