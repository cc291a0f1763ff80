"""What `inspect` looks at: one split, as training has it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import Dataset

from smollit.data.batching.dataset import column
from smollit.data.encoding.encoder import Encoder
from smollit.data.encoding.report import Report


@dataclass(frozen=True)
class SplitView:
    """One split: its rows as they came, and the examples that training takes from the cache.

    Args:
        name: Name of the split.
        num_rows: Rows of the source.
        row: Gives the source's row of a number, counted from 0.
        encoder: Made the examples.
        examples: The good rows, tokenised; the column `row` has their numbers in the source.
        report: Of these examples.
        max_dropped_share: Share of rows, 0 to 1, that may be dropped before a run is refused.
        others: The run's other splits, which should not share rows with this one.
    """

    name: str
    num_rows: int
    row: Callable[[int], dict[str, Any]]
    encoder: Encoder
    examples: Dataset
    report: Report
    max_dropped_share: float = 0.1
    others: list["SplitView"] = field(default_factory=list)

    def column(self, name: str) -> Any:
        """A column of numbers of the examples, as an array."""
        return column(self.examples, name)

    def problems(self) -> list[int]:
        """Numbers of the rows that were dropped, cut, or had control text escaped, in order."""
        good = self.column("row")
        changed = good[self.column("truncated").astype(bool) | (self.column("control") > 0)]
        dropped = np.setdiff1d(np.arange(self.num_rows), good)
        return np.union1d(dropped, changed).astype(int).tolist()
