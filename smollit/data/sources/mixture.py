"""Parts with weights and caps, which of them are train, val, test and predict, and which rows an epoch has."""

import math
import re
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch

from smollit.data.sources.files import check_files, find_files
from smollit.data.sources.hashes import seeded
from smollit.data.sources.source import Source
from smollit.data.sources.where import Expression

SPLIT = re.compile(r"^(?P<name>[\w.\-]+)(?P<slice>\[-?\d*%?:-?\d*%?\])?$")
DEFAULT_SPLIT = "train"  # of a part without a configured split
# Names of the formats; formats/detection/detect.py defines them.
FormatName = Literal[
    "auto",
    "messages",
    "prompt_completion",
    "sharegpt",
    "alpaca",
    "text",
    "dialogue",
    "preference",
    "ranked",
    "unpaired",
    "thread",
]


@dataclass
class Part:
    """One source of a mixture.

    Args:
        dataset: Hub id, folder, file, glob or URL.
        split: Split, perhaps with a slice; null takes the data module's.
        weight: How often each row is seen per epoch: 1 once, 2 twice, 0.5 a different random half in each epoch.
        max_rows: At most this many rows, drawn at random; when streaming, the first ones. Null takes all.
        format: Format of the rows; `auto` detects it.
        columns: Names of columns, as {canonical: the data set's own}.
        subset: Configuration of a data set that has several; null takes the data module's.
        revision: Revision of a data set on the Hub; null takes the data module's.
        where: Rows to use, as an expression over columns; null takes the data module's.
    """

    dataset: str
    split: str | None = None
    weight: float = 1.0
    max_rows: int | None = None
    format: FormatName = "auto"
    columns: dict[str, str] | None = None
    subset: str | None = None
    revision: str | None = None
    where: str | None = None


@dataclass(frozen=True)
class Splits:
    """The data sets and splits that the user named.

    Args:
        dataset: The parts.
        train: Split to train on, of parts that name none.
        val: Split to validate on.
        test: Split to test on; None is that of `val`.
        predict: Split whose prompts `predict` completes; None is that of `val`.
        val_sets: Named sets to validate on, instead of `val`.
        format: Format of parts that do not name one.
        columns: Columns of parts that do not name any.
        subset: Configuration of parts that do not name one.
        revision: Revision of parts that do not name one.
        where: Rows of parts that do not say which.
        max_rows: Cap on the training rows of parts that have none.
    """

    dataset: list[Part]
    _: KW_ONLY
    train: str
    val: str | None
    test: str | None = None
    predict: str | None = None
    val_sets: dict[str, Part] = field(default_factory=dict)
    format: FormatName = "auto"
    columns: dict[str, str] | None = None
    subset: str | None = None
    revision: str | None = None
    where: str | None = None
    max_rows: int | None = None

    def __post_init__(self) -> None:
        for name, part in self.val_sets.items():
            if part.weight != 1:
                raise ValueError(f"`data.val_sets.{name}` has a weight, which is for training: remove it")
            if not re.fullmatch(r"[\w-]+", name):
                raise ValueError(f"`data.val_sets` has the name {name!r}: use letters, digits, _ and - only")

    def parts(self, name: str) -> dict[str, list[Part]]:
        """The parts of `train`, `val`, `test` or `predict`, by the key of their examples: `train`, `val/<set>`.

        Each has its split, and the format and columns that it inherits.
        """
        if name == "train":
            capped = [
                replace(part, max_rows=self.max_rows if part.max_rows is None else part.max_rows)
                for part in self.dataset
            ]
            return {name: [self._complete(part, self.train) for part in capped]}
        if name == "val" and self.val_sets:
            return {f"val/{key}": [self._complete(part, self.val)] for key, part in self.val_sets.items()}
        split = {"val": self.val, "test": self.test or self.val, "predict": self.predict or self.val}[name]
        # A part's own split, weight and cap are for training.
        own = [replace(part, split=split, weight=1.0, max_rows=None) for part in self.dataset]
        return {name: [self._complete(part, split) for part in own]} if split else {}

    def weights(self) -> list[float]:
        """How often each row of each training part is seen per epoch."""
        return [part.weight for part in self.dataset]

    def _complete(self, part: Part, split: str | None) -> Part:
        return replace(
            part,
            split=part.split or split or DEFAULT_SPLIT,
            format=self.format if part.format == "auto" else part.format,
            columns=self.columns if part.columns is None else part.columns,
            subset=part.subset or self.subset,
            revision=part.revision or self.revision,
            where=part.where or self.where,
        )


def label(key: str, part: Part, is_alone: bool) -> str:
    """The name of a part in logs: its split, its set's name, or both its split and data set."""
    if not is_alone:
        return f"{part.split} of {part.dataset}"
    return key.removeprefix("val/") if key.startswith("val/") else str(part.split)


def load_part(part: Part, *, seed: int, cache_dir: Path | None = None, streaming: bool = False) -> Source:
    """Find the rows of a part; nothing is read yet.

    Args:
        part: What to load; without a split, `DEFAULT_SPLIT`.
        seed: Seed of the draw of `max_rows`.
        cache_dir: Folder of downloads and of the remembered hashes of files.
        streaming: Whether only `stream` is used.

    Raises:
        ValueError: If the data set has no name, the weight is not above 0, the cap is below 1, or `where` is no
            expression; as `load_source`.
    """
    if not part.dataset.strip():
        raise ValueError("`dataset` is empty: give a Hub id, a folder, a file, a glob or a URL")
    if not (math.isfinite(part.weight) and part.weight > 0):
        raise ValueError(
            f"`weight` of {part.dataset} must be a number above 0 (1: each row once per epoch), got {part.weight}"
        )
    if part.max_rows is not None and part.max_rows < 1:
        raise ValueError(f"`max_rows` of {part.dataset} must be at least 1, or null for all rows, got {part.max_rows}")
    source = load_source(
        part.dataset,
        part.split or DEFAULT_SPLIT,
        subset=part.subset,
        revision=part.revision,
        cache_dir=cache_dir,
        streaming=streaming,
    )
    where = Expression(part.where) if part.where else None
    return replace(source, where=where, max_rows=part.max_rows, seed=seed if part.max_rows else 0)


def load_source(
    dataset: str,
    split: str,
    *,
    subset: str | None = None,
    revision: str | None = None,
    cache_dir: Path | None = None,
    streaming: bool = False,
) -> Source:
    """Find one split, such as `train_sft` or `train_sft[:5%]`; its rows are read on first use.

    Args:
        dataset: Hub id; a folder laid out as on the Hub or written by `save_to_disk`; a file; a glob; or a URL.
        split: Name of the split, perhaps with a slice. Files, globs and URLs give all of their rows, whatever the name.
        subset: Configuration of a data set that has several; of a folder, also a folder in it.
        revision: Revision of a data set on the Hub.
        cache_dir: Folder of downloads and of the remembered hashes of files, so that the next start reads neither.
        streaming: Whether only `stream` is used.

    Raises:
        ValueError: If the folder, file or split can't be found, a URL can't be downloaded, or a file is empty.
    """
    match = SPLIT.match(split)
    if match is None:
        raise ValueError(f"a split must look like train_sft, train_sft[:5%] or train_sft[100:200], got {split!r}")
    if any(int(number) > 100 for number in re.findall(r"(\d+)%", split)):
        raise ValueError(f"a slice of a split is at most [:100%], got {split!r}")
    files = find_files(dataset, match["name"], cache_dir, subset=subset)
    check_files(files, match["name"])
    if revision and (files or Path(dataset).expanduser().exists()):
        raise ValueError(f"`data.revision` is for data sets on the Hub, and {dataset} is not one: remove it")
    return Source(
        dataset=dataset,
        split=match["name"],
        subset=subset,
        revision=revision,
        row_slice=match["slice"] or "",
        files=files,
        cache_dir=cache_dir,
        streaming=streaming,
    )


def epoch_members(num_rows: list[int], weights: list[float], *, seed: int, epoch: int) -> list[int]:
    """The row numbers of an epoch, counted through all parts in turn; not shuffled, some perhaps several times.

    A pure function. The fractional part of a weight selects a fraction of the rows that changes from epoch to epoch:
    at 0.25, each row is used once in 4 epochs.

    Args:
        num_rows: Rows of each part.
        weights: How often each row is seen per epoch.
        seed: Seed of the draws.
        epoch: Counted from 0.
    """
    members: list[int] = []
    start = 0
    for part, (rows, weight) in enumerate(zip(num_rows, weights, strict=True)):
        whole, fraction = math.floor(weight), weight - math.floor(weight)
        least = 1 if whole == 0 and rows else 0  # a part of one row would never be seen at weight 0.4
        extra = _turn(rows, max(least, round(fraction * rows)), seed=(seed, part), epoch=epoch)
        members += [start + row for row in list(range(rows)) * whole + extra]
        start += rows
    return members


def _turn(rows: int, count: int, *, seed: tuple[int, int], epoch: int) -> list[int]:
    """The epoch's piece of a random order of the rows; when the order has no whole piece left, a new order begins."""
    if count == 0:
        return []
    turn, piece = divmod(epoch, rows // count)
    order = torch.randperm(rows, generator=seeded(seed[0], turn, seed[1]))
    return sorted(order[piece * count : (piece + 1) * count].tolist())
