"""The rows of a run, from its ledger: which were never learned, forgotten, fought over, or are likely mislabelled."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from smollit.training.ledger import FILE, read_ledger

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
LEARNED = 0.6  # fraction of pairs that the run ranks right, below which margins say nothing about labels
OUTLIER = -3.0  # standard deviations from the mean at which the loss of a chat is one


class RowReport(NamedTuple):
    """The training rows of a run, each with a value per epoch. R rows, E epochs.

    Args:
        rows: [R] row numbers.
        values: [R, E] mean margin of the row's pairs, or minus its mean loss; NaN where an epoch did not reach it.
        is_right: [R, E] whether the margin is above 0, or the loss below the mean of the first epoch.
        is_pairs: Whether the rows are pairs.
    """

    rows: NDArray[np.int64]
    values: Floats
    is_right: Flags
    is_pairs: bool

    @property
    def scores(self) -> Floats:
        """[R] mean over the epochs of the value in standard deviations of its epoch: the lowest are the most doubtful.

        Margins are compared with 0, losses with the mean of their epoch.
        """
        spread = np.nanstd(self.values, axis=0)
        center = 0.0 if self.is_pairs else np.nanmean(self.values, axis=0)
        scores: Floats = np.nanmean((self.values - center) / np.where(spread > 0, spread, 1.0), axis=1)
        return scores

    @property
    def groups(self) -> dict[str, list[int]]:
        """Row numbers by what happened to the row, the most doubtful first."""
        was_seen = ~np.isnan(self.values)
        order = np.where(was_seen.any(axis=1), was_seen.shape[1] - 1 - was_seen[:, ::-1].argmax(axis=1), 0)
        ends_right = np.take_along_axis(self.is_right, order[:, None], axis=1)[:, 0]
        once_right: Flags = np.asarray((self.is_right & was_seen).any(axis=1))
        found: dict[str, Flags] = {
            "never_learned": ~once_right,
            "forgotten": once_right & ~ends_right,
            "fought_over": self._changes() >= 2,
            "likely_mislabelled": self._doubtful(),
        }
        ranked = np.argsort(self.scores, kind="stable")
        return {name: self.rows[ranked][chosen[ranked]].tolist() for name, chosen in found.items()}

    def _changes(self) -> NDArray[np.int64]:
        """[R] how often a row went from right to wrong or back, over the epochs that saw it."""
        return np.array(
            [
                np.abs(np.diff(right[~np.isnan(value)].astype(int))).sum()
                for right, value in zip(self.is_right, self.values, strict=True)
            ],
            dtype=np.int64,
        )

    def _doubtful(self) -> Flags:
        """[R] pairs that the run ranks the other way, once it ranks most pairs right; chats whose loss stands out."""
        if not self.is_pairs:
            return self.scores < OUTLIER
        last = self.values[:, -1]
        seen = last[~np.isnan(last)]
        return (self.scores < 0) & bool(len(seen) and (seen > 0).mean() > LEARNED)


def row_report(folder: Path) -> RowReport:
    """The training rows of a run.

    Raises:
        ValueError: If there is no ledger, or it holds no training rows.
    """
    entries = read_ledger(folder / FILE)
    entries = entries.filter(pc.equal(entries["split"], "train"))
    if not entries.num_rows:
        raise ValueError(
            f"{folder} has no {FILE} of training rows: `fit` writes it when it saves a checkpoint, in runs that log"
        )
    is_pairs = not entries["margin"].null_count
    values = entries["margin"].to_numpy() if is_pairs else -entries["loss"].to_numpy()
    rows, place = np.unique(entries["row"].to_numpy(), return_inverse=True)
    epochs, column = np.unique(entries["epoch"].to_numpy(), return_inverse=True)
    sums, counts = np.zeros((2, len(rows), len(epochs)))
    np.add.at(sums, (place, column), values)
    np.add.at(counts, (place, column), 1)
    means = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    return RowReport(rows, means, means > (0.0 if is_pairs else np.nanmean(means[:, 0])), is_pairs)


def describe_rows(report: RowReport, folder: Path, most: int = 10) -> list[str]:
    """One line per group: how many rows, and the most doubtful of them."""
    lines = []
    for name, rows in report.groups.items():
        shown = ", ".join(map(str, rows[:most])) + (", ..." if len(rows) > most else "")
        lines.append(
            f"{name.replace('_', ' ')}: {len(rows):,} of {len(report.rows):,}" + (f": {shown}" if rows else "")
        )
    return [*lines, f"see one: python -m smollit inspect --config {folder / 'config.yaml'} --row NUMBER"]


def write_rows(report: RowReport, path: Path) -> None:
    """Write the values, the score and the groups of each row, the most doubtful first, as JSON Lines."""
    groups = {name: set(rows) for name, rows in report.groups.items()}
    with path.open("w", encoding="utf-8") as file:
        for index in np.argsort(report.scores, kind="stable"):
            row = int(report.rows[index])
            values = [None if np.isnan(value) else round(float(value), 6) for value in report.values[index]]
            line = {"row": row, "score": round(float(report.scores[index]), 6), "values": values}
            file.write(json.dumps(line | {"groups": [name for name in groups if row in groups[name]]}) + "\n")
