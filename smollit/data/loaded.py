"""The loaded parts of a split: as examples, as reports that are named and written, and compared with validation."""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from smollit.data.batching.dataset import Examples
from smollit.data.encoding.part import EncodedPart
from smollit.data.encoding.report import Report, fraction
from smollit.data.encoding.select import LoadedPart, Same

log = logging.getLogger("smollit.data")


def examples_of(loaded: Sequence[LoadedPart]) -> Examples:
    """The examples of all parts of a split."""
    return Examples(
        [part.examples for part in loaded],
        [max(part.report.source_rows, part.report.rows) for part in loaded],
        [part.key for part in loaded],
    )


def named_reports(key: str, parts: Sequence[EncodedPart], loaded: Sequence[LoadedPart]) -> dict[str, Report]:
    """The report of each part of a split, by the split's name; of several parts, also by its number and label.

    What `data.dedup` and `data.drop_val_rows` leave out is logged.
    """
    reports = {}
    for number, (part, used) in enumerate(zip(parts, loaded, strict=True), 1):
        reports[key if len(parts) == 1 else f"{key}: {number}. {part.label}"] = used.report
        if used.key != part.folder.name:
            _log_line(used.report.summary(part.label))
    return reports


def write_reports(reports: dict[str, Report], folder: Path) -> Path:
    """Write data_report.json, a report per split, into a run folder; it appears complete or not at all."""
    path, text = folder / "data_report.json", to_json(reports)
    if not path.is_file() or path.read_bytes() != text.encode():
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".data_report.json.{os.getpid()}"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    return path


def to_json(reports: dict[str, Report]) -> str:
    """The reports by the name of their split, as indented JSON."""
    return json.dumps({split: asdict(report) for split, report in reports.items()}, indent=2, ensure_ascii=False) + "\n"


@rank_zero_only
def warn_of_shared_rows(examples: Mapping[str, Examples]) -> None:
    """Warn if validation uses training rows."""
    train = set(examples["train"].keys) if "train" in examples else set()
    if any(train & set(rows.keys) for key, rows in examples.items() if key.startswith("val")):
        log.warning(
            "validation uses the training rows. To split one data set, set e.g. `data.train_split` to train[:95%]"
            " and `data.val_split` to train[95%:]; or set `data.val_split` to null"
        )


@rank_zero_only
def warn_of_held_out(train: Sequence[LoadedPart], held_out: Sequence[LoadedPart]) -> None:
    """Warn if some chats, or prompts of pairs, of training stand in validation too."""
    if not held_out or {part.key for part in train} & {part.key for part in held_out}:
        return  # `warn_of_shared_rows` names a whole split
    same: Same = "prompt" if "prompt_ids" in train[0].examples.column_names else "row"
    there = np.concatenate([part.digests(same) for part in held_out])
    count = sum(int(np.isin(part.digests(same), there).sum()) for part in train)
    if count:
        total = sum(len(part.examples) for part in train)
        log.warning(
            "%s stand in validation too, which would measure memorization: `data.drop_val_rows: %s` leaves them out",
            fraction(count, total, "training chats" if same == "row" else "training prompts"),
            same,
        )


@rank_zero_only
def _log_line(line: str) -> None:
    log.info("%s", line)
