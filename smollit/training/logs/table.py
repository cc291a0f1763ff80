"""MetricsTable: metrics.csv, with one row per logged step over stops, kills and resumes."""

import csv
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.core.saving import save_hparams_to_yaml
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from smollit.paths import reading, write_whole

FILE = "metrics.csv"
Row = dict[str, str]


class MetricsTable:
    """The writer of a CSVLogger, in place of Lightning's own.

    Lightning's writer removes the rows of an earlier start, writes one row per call, and only every 100 steps. Here,
    metrics of the same step share a row, which is written at once; a new metric adds a column. A program may read the
    file while the run continues.

    Args:
        folder: The folder of metrics.csv.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / FILE
        self.metrics: list[Row] = []  # CSVLogger counts them for metrics without a step
        rows = read_table(self.path)
        self.columns = list(rows[0]) if rows else ["step"]
        self.last = rows[-1] if rows else {}
        self.last_starts = 0  # byte position of the last row; known once this writer has written it

    def log_metrics(self, metrics_dict: Mapping[str, Any], step: int = 0) -> None:
        """Add metrics to the row of a step."""
        values = {name: as_text(value) for name, value in metrics_dict.items()} | {"step": str(step)}
        is_appended = bool(self.last_starts) and values.keys() <= set(self.columns) and step >= int(self.last["step"])
        if not is_appended:
            self._rewrite(merged(read_table(self.path), values))
            return
        is_same = step == int(self.last["step"])
        self.last = self.last | values if is_same else values
        line = to_csv(self.columns, [self.last])
        # In place and in one go: a kill between two writes would lose the row.
        with self.path.open("rb+") as file:
            self.last_starts = file.seek(self.last_starts if is_same else 0, os.SEEK_SET if is_same else os.SEEK_END)
            file.write(line)
            file.truncate()

    def forget_after(self, step: int) -> None:
        """Remove the rows of later steps, which a resumed run makes again."""
        rows = read_table(self.path)
        kept = [row for row in rows if int(row["step"]) <= step]
        if len(kept) < len(rows):
            self._rewrite(kept)

    def _rewrite(self, rows: list[Row]) -> None:
        self.columns = list(dict.fromkeys(["step", *(name for row in rows for name in row)]))
        self.last = rows[-1] if rows else {}
        text = to_csv(self.columns, [dict(zip(self.columns, self.columns, strict=True)), *rows])
        self.last_starts = len(text) - len(to_csv(self.columns, rows[-1:])) if rows else 0
        write_whole(self.path, text)

    # ---- what CSVLogger calls besides

    def log_hparams(self, params: dict[str, Any]) -> None:
        """Write the hyper-parameters beside the table, once."""
        path = self.path.with_name("hparams.yaml")
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            save_hparams_to_yaml(str(path), params)

    def save(self) -> None:
        """Nothing is left to write."""


def as_text(value: Any) -> str:
    """A value with all its digits."""
    return str(value.item() if isinstance(value, Tensor) else value)


def use_table(logger: CSVLogger) -> MetricsTable:
    """The table that a CSVLogger writes to, put in the place of Lightning's writer at the first call."""
    writer: object = logger._experiment
    if not isinstance(writer, MetricsTable):
        writer = MetricsTable(logger.log_dir)
        logger._experiment = writer  # type: ignore[assignment]
    return writer


def read_table(path: Path) -> list[Row]:
    """The rows of a metrics.csv, with empty values for metrics that were not logged at a step.

    Raises:
        ValueError: If the file is damaged.
    """
    if not path.is_file():
        return []
    with reading(path):
        whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")  # a kill may leave an incomplete line
        rows = list(csv.DictReader(io.StringIO(whole)))
        for row in rows:
            int(row.get("step") or "no step")
    return rows


def merged(rows: list[Row], values: Row) -> list[Row]:
    """The rows with values added to that of their step, or as a row of their own."""
    by_step = {int(row["step"]): row for row in rows}
    step = int(values["step"])
    by_step[step] = by_step.get(step, {}) | values
    return [by_step[key] for key in sorted(by_step)]


def to_csv(columns: list[str], rows: list[Row]) -> bytes:
    """Rows as bytes, without a header."""
    text = io.StringIO()
    csv.DictWriter(text, columns, restval="", lineterminator="\n").writerows(rows)
    return text.getvalue().encode()
