"""SplitView: one split as training has it, and how to get those of a data module."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from smollit.data import ChatDataModule
from smollit.data.batching.dataset import column
from smollit.data.encoding.encoder import Encoder
from smollit.data.encoding.part import EncodedPart
from smollit.data.encoding.report import Report
from smollit.data.encoding.select import LoadedPart
from smollit.data.sources.files import Row

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class SplitView:
    """One split: its source rows, and the examples that training reads from the cache.

    Args:
        name: Name of the split.
        num_rows: Number of rows of the source, before a setting leaves some out.
        row: Returns the source's row of a number, counted from 0.
        encoder: The encoder of the examples.
        examples: The good rows, tokenized; the column `row` has their numbers in the source.
        report: Counts of these rows.
        max_dropped_share: Fraction of rows, 0 to 1, that may be dropped before a run is refused.
        others: The run's other splits, which should not share rows with this one.
        numbers: Gives the numbers of the rows that are used; None if all are.
    """

    name: str
    num_rows: int
    row: Callable[[int], Row]
    encoder: Encoder
    examples: Dataset
    report: Report
    max_dropped_share: float = 0.1
    others: list["SplitView"] = field(default_factory=list)
    numbers: Callable[[], NDArray[np.int64]] | None = None

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


def views(data: ChatDataModule) -> dict[str, list[SplitView]]:
    """The parts of train, val and test as training has them: tokenized if need be, and not refused if they are bad.

    Each knows the parts of the other splits, whose rows it should not share.
    """
    splits = {name: data.parts(name) for name in SPLITS}
    for part in (part for split in splits.values() for parts in split.values() for part in parts):
        part.build(data.num_proc)
    loaded = data.used({key: parts for name in ("train", "val") for key, parts in splits[name].items()}, verify=False)
    loaded |= data.used(splits["test"], verify=False)
    alone = {
        name: [
            _view(part, used, data)
            for key, parts in split.items()
            for part, used in zip(parts, loaded[key], strict=True)
        ]
        for name, split in splits.items()
    }
    everything = [(name, view) for name, found in alone.items() for view in found]
    return {
        name: [
            replace(view, others=[other for kind, other in everything if kind != name and other.name != view.name])
            for view in found
        ]
        for name, found in alone.items()
    }


def _view(part: EncodedPart, used: LoadedPart, data: ChatDataModule) -> SplitView:
    return SplitView(
        name=part.label,
        num_rows=used.report.source_rows,
        numbers=part.source.used_numbers,
        row=part.source.row,
        encoder=part.encoder,
        examples=used.examples,
        report=used.report,
        max_dropped_share=data.max_dropped_share,
    )
