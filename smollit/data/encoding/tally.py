"""Numbers of a split's examples by column, read from Arrow in slices: what the report counts."""

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

SLICE = 20_000  # rows that are looked at once
NUM_EXAMPLES = 3  # rows that are named per cause


def read_columns(examples: Dataset) -> tuple[dict[str, Any], Counter[str], dict[str, list[str]]]:
    """Numbers of all rows by column (of lists of ids, their lengths), and the bad rows by cause."""
    wanted = ["cut", "control", "length", "full_length", "trained", "digest", "chosen_ids", "rejected_ids", "score_gap"]
    names = [name for name in wanted if name in examples.column_names]
    parts: dict[str, list[Any]] = {name: [] for name in [*names, "good"]}
    dropped: Counter[str] = Counter()
    named: dict[str, list[str]] = {}
    slices = examples.select_columns([*names, "problem", "detail", "row"]).with_format("arrow")
    for table in slices.iter(batch_size=SLICE):
        good = pc.equal(table["problem"], "")
        parts["good"].append(good.to_numpy())
        for name in names:
            parts[name].append(_numbers(table[name]))
        _count_bad(table.filter(pc.invert(good)), dropped, named)
    none = np.zeros(0, dtype=bool)
    return {name: np.concatenate(found) if found else none for name, found in parts.items()}, dropped, named


def _numbers(column: pa.ChunkedArray) -> Any:
    return (pc.list_value_length(column) if pa.types.is_list(column.type) else column).to_numpy()


def _count_bad(bad: pa.Table, dropped: Counter[str], named: dict[str, list[str]]) -> None:
    for cause in pc.unique(bad["problem"]).to_pylist():
        rows = bad.filter(pc.equal(bad["problem"], cause))
        dropped[cause] += rows.num_rows
        first = rows.slice(0, NUM_EXAMPLES).to_pylist()
        lines = [f"row {row['row']}: {row['detail']}" for row in first]
        named[cause] = [*named.get(cause, []), *lines][:NUM_EXAMPLES]


def quantile(ordered: Any, percent: int) -> int:
    """The smallest of the values that at least so many percent do not exceed (nearest rank)."""
    return int(ordered[(percent * len(ordered) + 99) // 100 - 1]) if len(ordered) else 0
