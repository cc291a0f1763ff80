"""Rows that a script holds in memory: written once as JSON Lines, so that they are rows of files like all others."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from datasets import Dataset, DatasetDict

from smollit.data.sources.columns import undecoded
from smollit.data.sources.files import Row
from smollit.data.sources.mixture import Part
from smollit.paths import write_whole

Rows: TypeAlias = Dataset | list[Row]
InMemory: TypeAlias = Rows | DatasetDict | dict[str, Rows]


def on_disk(dataset: str | Path | list[Part] | InMemory, cache_dir: Path) -> str | list[Part]:
    """What `data.dataset` means: a name or parts as they are, and rows in memory as the path of a copy in the cache.

    The path depends on the rows alone: the same rows are tokenized once, and a run resumes on them.

    Raises:
        ValueError: If it is none of these.
    """
    if isinstance(dataset, str | Path):
        return str(dataset)
    if isinstance(dataset, Mapping):
        texts = {split: _json_lines(rows) for split, rows in dataset.items()}
        folder = cache_dir / "rows" / _digest("\n\n".join(f"{split}\n{text}" for split, text in texts.items()))
        for split, text in texts.items():
            _write_once(folder / f"{split}.jsonl", text)
        return str(folder)
    if isinstance(dataset, list) and dataset and all(map(_is_part, dataset)):
        return [as_part(part) for part in dataset]
    if not isinstance(dataset, Dataset | list) or not len(dataset):
        raise ValueError(
            "`data.dataset` must be a name, a path, a list of parts, a datasets.Dataset or DatasetDict, or a list of"
            f" dicts, got a {type(dataset).__name__}{' without rows' if isinstance(dataset, Dataset | list) else ''}"
        )
    text = _json_lines(dataset)  # type: ignore[arg-type]  # not a list of parts
    return str(_write_once(cache_dir / "rows" / f"{_digest(text)}.jsonl", text))


def as_part(part: Part | Mapping[str, Any] | str | Path) -> Part:
    """A part, from its settings as a config has them, or from the name of its data set."""
    if isinstance(part, str | Path):
        return Part(str(part))
    return part if isinstance(part, Part) else Part(**part)


def _is_part(value: object) -> bool:
    """Whether a value is a part, or has the settings of one, which no row has: its data set is no text of a chat."""
    settings = {setting.name for setting in fields(Part)}
    return isinstance(value, Part) or (isinstance(value, dict) and "dataset" in value and value.keys() <= settings)


def _json_lines(rows: Iterable[Row]) -> str:
    """One JSON object on each line; NumPy's numbers and arrays are those of Python, and dates become texts."""
    if isinstance(rows, Dataset):  # without its format, as that of torch
        rows = undecoded(rows.with_format(None))
    if wrong := next((row for row in rows if not isinstance(row, dict)), None):
        raise ValueError(f"`data.dataset`: a row in memory must be a dict, got a {type(wrong).__name__}")
    return "".join(json.dumps(row, default=_plain) + "\n" for row in rows)


def _plain(value: object) -> object:
    if isinstance(value, bytes):  # of an image, for example: only text is read
        return f"{len(value):,} bytes"
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else str(value)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _write_once(path: Path, text: str) -> Path:
    if not path.exists():
        write_whole(path, text)
    return path
