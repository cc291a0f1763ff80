"""SplitView: one split as training has it, and how to get those of a data module."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from smollit.data import ChatDataModule
from smollit.data.encoding.counts import column
from smollit.data.encoding.encoder import Encoder
from smollit.data.encoding.part import EncodedPart
from smollit.data.encoding.report import Report
from smollit.data.encoding.select import LoadedPart
from smollit.data.sources.files import Row

SPLITS = ("train", "val", "test")
LARGE = 50_000_000  # bytes of files
NUM_SAMPLED = 1_000  # rows of a large part that are tokenized


@dataclass(frozen=True, kw_only=True)
class SplitView:
    """One split: its source rows, and the examples that training reads from the cache.

    Args:
        name: Name of the split.
        key: What identifies its examples: validation and test may have the same.
        num_rows: Number of rows of the source, before a setting leaves some out.
        row: Returns the source's row of a number, counted from 0.
        encoder: The encoder of the examples.
        examples: The good rows, tokenized; the column `row` has their numbers in the source.
        report: Counts of these rows.
        max_dropped_share: Fraction of rows, 0 to 1, that may be dropped before a run is refused.
        others: The run's other splits, which should not share rows with this one.
        numbers: Gives the numbers of the rows that are used; None if all are.
        num_sampled: Number of rows that were tokenized, if these are not all.
    """

    name: str
    key: str = ""
    num_rows: int
    row: Callable[[int], Row]
    encoder: Encoder
    examples: Dataset
    report: Report
    max_dropped_share: float = 0.1
    others: list["SplitView"] = field(default_factory=list)
    numbers: Callable[[], NDArray[np.int64]] | None = None
    num_sampled: int | None = None

    @property
    def has_chats(self) -> bool:
        """Whether the examples are chats, not pairs."""
        return "spans" in self.examples.column_names

    def column(self, name: str) -> NDArray[Any]:
        """A column of numbers of the examples, as an array."""
        return column(self.examples, name)

    def problems(self) -> list[int]:
        """Numbers of the rows that were dropped, truncated, or had control text escaped, in order."""
        good = self.column("row")
        changed = good[self.column("truncated").astype(bool) | (self.column("control") > 0)]
        dropped = np.setdiff1d(self.numbers() if self.numbers else np.arange(self.num_rows), good)
        return np.union1d(dropped, changed).astype(int).tolist()


def views(data: ChatDataModule, *, in_full: bool = True) -> dict[str, list[SplitView]]:
    """The parts of train, val and test as training has them: tokenized if need be, and not refused if they are bad.

    Each knows the parts of the other splits, whose rows it should not share.

    Args:
        data: The data module.
        in_full: Whether to tokenize all rows of large parts that the cache lacks, and not only the first ones.
    """
    splits = {name: data.parts(name) for name in SPLITS}
    alone = {name: _views_of(split, data, in_full=in_full) for name, split in splits.items()}
    return {name: [replace(view, others=_others(view, name, alone)) for view in found] for name, found in alone.items()}


def _others(view: SplitView, name: str, alone: dict[str, list[SplitView]]) -> list[SplitView]:
    """The parts of other splits, each once: validation and test may be one."""
    others = {other.key: other for kind, found in alone.items() if kind != name for other in found}
    return [other for key, other in others.items() if key != view.key]


def _views_of(split: dict[str, list[EncodedPart]], data: ChatDataModule, *, in_full: bool) -> list[SplitView]:
    """The views of the parts of a split; the first rows alone of those that are large and not in the cache."""
    parts = [part for parts in split.values() for part in parts]
    if not in_full and any(map(_is_large, parts)) and all(part.can_sample for part in parts):
        return [_sample(part, data) for part in parts]
    held_out = data.parts("val") if "train" in split and data.drop_val_rows != "off" else {}
    for part in (part for parts in (split | held_out).values() for part in parts):
        part.build(data.num_proc)
    loaded = data.used(split | held_out, verify=False)
    return [_view(part, used, data) for key in split for part, used in zip(split[key], loaded[key], strict=True)]


def _is_large(part: EncodedPart) -> bool:
    """Whether it would take long to tokenize a part that the cache lacks. A streamed part has no cache."""
    size = sum(file.stat().st_size for file in part.source.files)
    return part.source.streaming or (size > LARGE and not part.folder.exists())


def _view(part: EncodedPart, used: LoadedPart, data: ChatDataModule) -> SplitView:
    return SplitView(
        name=part.label,
        key=used.key,
        num_rows=used.report.source_rows,
        numbers=part.source.used_numbers,
        row=part.source.row,
        encoder=part.encoder,
        examples=used.examples,
        report=used.report,
        max_dropped_share=data.max_dropped_share,
    )


def _sample(part: EncodedPart, data: ChatDataModule) -> SplitView:
    used, rows = part.sample(NUM_SAMPLED)

    def row(number: int) -> Row:
        found = rows.get(number) or next((row for n, row in part.source.numbered() if n >= number), None)
        if found is None:
            raise ValueError(f"split {part.label} has fewer than {number + 1:,} rows")
        return found

    return SplitView(
        name=part.label,
        key=f"the first rows of {part.source.dataset} {part.source.split}{part.source.row_slice}",
        num_rows=max(rows, default=-1) + 1,
        numbers=lambda: np.array(list(rows)),
        row=row,
        encoder=part.encoder,
        examples=used.examples,
        report=used.report,
        max_dropped_share=data.max_dropped_share,
        num_sampled=len(rows),
    )
