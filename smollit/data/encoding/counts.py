"""The counts of a report, from a split's examples: columns of numbers, read from Arrow in slices."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from numpy.typing import NDArray

from smollit.data.encoding.report import Report

ROWS_PER_SLICE = 20_000
NUM_NAMED = 3  # rows that are named per reason
COUNTED = (
    "truncated",
    "control",
    "trailing",
    "length",
    "full_length",
    "loss_tokens",
    "row",
    "digest",
    "chosen_tokens",
    "score_gap",
)
Columns = dict[str, NDArray[Any]]


def count_examples(examples: Dataset) -> Report:
    """Count what was kept, truncated and dropped; memory holds a few numbers per row, never the ids."""
    columns, tally = _read_columns(examples)
    good = {name: values[columns["good"]] for name, values in columns.items()}
    lengths = np.sort(columns["full_length"][columns["full_length"] > 0])
    return Report(
        rows=len(columns["good"]),
        **count_kept(good),
        lengths={f"p{percent}": quantile(lengths, percent) for percent in (50, 90, 99)}
        | {"max": quantile(lengths, 100)},
        keep95=quantile(lengths, 95),
        dropped=dict(tally.dropped),
        examples=tally.examples,
        unprinted=dict(tally.unprinted),
        first_unprinted=tally.first_unprinted,
    )


def count_kept(kept: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """What a report says of the examples that are kept, by the columns in `COUNTED` that they have."""
    return {
        "kept": len(kept["row"]),
        "truncated": int(kept["truncated"].sum()),
        "control": int((kept["control"] > 0).sum()),
        "trailing": int(kept["trailing"].sum()),
        "tokens": int(kept["length"].sum()),
        "loss_tokens": int(kept["loss_tokens"].sum()),
        "duplicates": num_repeats(kept["row"], kept["digest"]),
        **(_count_pairs(kept) if "score_gap" in kept else {}),
    }


def counted(examples: Dataset) -> list[str]:
    """The columns that are counted."""
    return [name for name in COUNTED if name in examples.column_names]


def quantile(ordered: NDArray[Any], percent: int) -> int:
    """The smallest value that at least this percentage of the values does not exceed (nearest rank)."""
    return int(ordered[(percent * len(ordered) + 99) // 100 - 1]) if len(ordered) else 0


def column(rows: Dataset, name: str) -> NDArray[Any]:
    """A column of numbers; other columns are not read."""
    if not len(rows):
        return np.zeros(0, dtype=np.int64)
    return rows.select_columns(name).with_format("arrow")[:][name].to_numpy()


def num_repeats(rows: NDArray[Any], digests: NDArray[Any]) -> int:
    """Examples that repeat the digest of an earlier row. The pairs of one row, beside one another, count once."""
    is_new = np.ones(len(rows), dtype=bool)
    is_new[1:] = (rows[1:] != rows[:-1]) | (digests[1:] != digests[:-1])
    return int(is_new.sum()) - len(np.unique(digests))


def _count_pairs(kept: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    chosen, gaps = kept["chosen_tokens"], kept["score_gap"]
    rejected = kept["loss_tokens"] - chosen
    return {
        "chosen_mean": float(chosen.mean()) if len(chosen) else 0.0,
        "rejected_mean": float(rejected.mean()) if len(rejected) else 0.0,
        "chosen_longer": int((chosen > rejected).sum()),
        "scored": int((~np.isnan(gaps)).sum()),
        "ties": int((gaps == 0).sum()),
        "reversed_scores": int((gaps < 0).sum()),
    }


@dataclass
class _Tally:
    """Dropped rows by reason, with the first of each; rows by what the template does not print, with the first."""

    dropped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    unprinted: Counter[str] = field(default_factory=Counter)
    first_unprinted: dict[str, int] = field(default_factory=dict)

    def add_dropped(self, bad: pa.Table) -> None:
        """Count rows that were dropped."""
        for reason in pc.unique(bad["problem"]).to_pylist():
            rows = bad.filter(pc.equal(bad["problem"], reason))
            self.dropped[reason] += rows.num_rows
            lines = [f"row {row['row']}: {row['detail']}" for row in rows.slice(0, NUM_NAMED).to_pylist()]
            self.examples[reason] = [*self.examples.get(reason, []), *lines][:NUM_NAMED]

    def add_unprinted(self, table: pa.Table) -> None:
        """Count what rows say and the template does not print."""
        some = table.filter(pc.greater(pc.list_value_length(table["unprinted"]), 0))
        for names, row in zip(some["unprinted"].to_pylist(), some["row"].to_pylist(), strict=True):
            self.unprinted.update(names)
            self.first_unprinted = {**dict.fromkeys(names, row), **self.first_unprinted}


def _read_columns(examples: Dataset) -> tuple[Columns, _Tally]:
    """Numbers of all rows by column, and the tally of their texts."""
    names = counted(examples)
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in [*names, "good"]}
    tally = _Tally()
    texts = [name for name in ("problem", "detail", "unprinted") if name in examples.column_names]
    slices = examples.select_columns([*names, *texts]).with_format("arrow")
    for table in slices.iter(batch_size=ROWS_PER_SLICE):
        good = pc.equal(table["problem"], "")
        parts["good"].append(good.to_numpy())
        for name in names:
            parts[name].append(table[name].to_numpy())
        tally.add_dropped(table.filter(pc.invert(good)))
        if "unprinted" in texts:
            tally.add_unprinted(table)
    none = np.zeros(0, dtype=bool)
    return {name: np.concatenate(found) if found else none for name, found in parts.items()}, tally
