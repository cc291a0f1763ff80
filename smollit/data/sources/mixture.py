"""Several sources as one: parts with weights and caps, and which of their rows an epoch has."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from smollit.data.formats.detect import FormatName
from smollit.data.sources.source import Source, load_source, seeded

DEFAULT_SPLIT = "train"  # of a part for which nobody names one


@dataclass
class Part:
    """One source of a mixture.

    Args:
        dataset: Hub id, folder, file or glob.
        split: Split, perhaps with a slice; null takes the data module's.
        weight: How often each row is seen per epoch: 1 once, 2 twice, 0.5 another random half in each epoch.
        max_rows: At most this many rows, drawn at random; when streaming, the first ones. Null takes all.
        format: What the rows look like; `auto` recognises it.
        columns: The canonical names of columns to the data set's own.
    """

    dataset: str
    split: str | None = None
    weight: float = 1.0
    max_rows: int | None = None
    format: FormatName = "auto"
    columns: dict[str, str] | None = None


def check_part(part: Part) -> None:
    """Refuse numbers that have no meaning.

    Raises:
        ValueError: If the data set has no name, the weight is not above 0, or the cap is below 1.
    """
    if not part.dataset.strip():
        raise ValueError("`dataset` is empty: give a hub id, a folder, a file or a glob")
    if not (math.isfinite(part.weight) and part.weight > 0):
        raise ValueError(
            f"`weight` of {part.dataset} must be a number above 0 (1: each row once per epoch), got {part.weight}"
        )
    if part.max_rows is not None and part.max_rows < 1:
        raise ValueError(f"`max_rows` of {part.dataset} must be at least 1, or null for all rows, got {part.max_rows}")


def load_part(part: Part, seed: int, cache_dir: Path | None = None, streaming: bool = False) -> Source:
    """The rows of a part; nothing is read yet.

    Args:
        part: What to load; without a split, `DEFAULT_SPLIT`.
        seed: Of the draw of `max_rows`.
        cache_dir: Folder where hashes of files are remembered.
        streaming: Whether only `stream` of it will be used.

    Raises:
        ValueError: As `check_part` and `load_source`.
    """
    check_part(part)
    source = load_source(part.dataset, part.split or DEFAULT_SPLIT, cache_dir, streaming)
    return source if part.max_rows is None else replace(source, max_rows=part.max_rows, seed=seed)


def epoch_members(num_rows: list[int], weights: list[float], seed: int, epoch: int) -> list[int]:
    """Row numbers, in the parts one behind the other, that an epoch has; not shuffled, some perhaps several times.

    A pure function. What a weight has behind its point is a share of the rows that changes from epoch to epoch: at
    0.25, each row comes once in 4 epochs.

    Args:
        num_rows: Rows of each part.
        weights: How often each row is seen per epoch.
        seed: Of the draws.
        epoch: Counted from 0.
    """
    members: list[int] = []
    start = 0
    for part, (rows, weight) in enumerate(zip(num_rows, weights, strict=True)):
        chosen = list(range(rows)) * math.floor(weight) + _extra_rows(rows, weight, seed, epoch, part)
        members += [start + row for row in chosen]
        start += rows
    return members


def _num_extra(rows: int, weight: float) -> int:
    whole, fraction = math.floor(weight), weight - math.floor(weight)
    least = 1 if whole == 0 and rows else 0  # a part of one row would never be seen at weight 0.4
    return max(least, round(fraction * rows))


def _extra_rows(rows: int, weight: float, seed: int, epoch: int, part: int) -> list[int]:
    """The epoch's piece of a random order of the rows; when the order has no whole piece left, a new order begins."""
    count = _num_extra(rows, weight)
    if count == 0:
        return []
    turn, piece = divmod(epoch, rows // count)
    order = torch.randperm(rows, generator=seeded(seed, turn, part))
    return sorted(order[piece * count : (piece + 1) * count].tolist())
