"""How the parts of a stream take turns: by their estimated sizes, since nobody has counted their rows."""

import json
from collections.abc import Sequence
from pathlib import Path

from smollit.data.sources.source import Source

PACKED = (".gz", ".zst", ".parquet")  # about a third of the size of their text
SAMPLE = 100  # rows whose mean size is that of a part with `max_rows`


def shares_of(parts: Sequence[tuple[Source, float]]) -> list[float]:
    """Estimated size of each part in an epoch, from the sizes of files; a Hub id counts as the mean of the others.

    Args:
        parts: The rows of each part, and its weight.
    """
    sizes = [_size_of(source) for source, _ in parts]
    known = [size for size in sizes if size]
    mean = sum(known) / len(known) if known else 1.0
    return [(size or mean) * weight for size, (_, weight) in zip(sizes, parts, strict=True)]


def _size_of(source: Source) -> float:
    """The size of the text that is read of a part; 0 if it has no files."""
    size = sum(map(_text_size, source.files))
    if not size or source.max_rows is None:
        return size
    rows = source.head(SAMPLE)
    return min(size, source.max_rows * sum(len(json.dumps(row, default=str)) for row in rows) / max(len(rows), 1))


def _text_size(file: Path) -> int:
    return file.stat().st_size * (3 if file.suffix in PACKED else 1)
