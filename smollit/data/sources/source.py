"""Where rows come from: a hub id, a local folder laid out as on the hub or saved by `datasets`, files, or a glob."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import torch
from datasets import Dataset, load_dataset

from smollit.data.formats.drop_reason import BadRow
from smollit.data.sources.files import check_files, ending, find_files, malformed, names_of, quiet_datasets, root_cause
from smollit.data.sources.hashes import file_hashes
from smollit.data.sources.raw import RAW, decode_line
from smollit.data.sources.readers import TABLE_ROWS, Row, iter_rows, no_rows, read_files, rows_of, stream_part
from smollit.names import first_line

SPLIT = re.compile(r"^(?P<name>[\w.\-]+)(?P<slice>\[-?\d*%?:-?\d*%?\])?$")
FIRST_ROWS = 100  # rows that say what the columns of JSON are


@dataclass(frozen=True)
class Source:
    """Rows of one split. Nothing is read before it is asked for, and `fingerprint` does not need the rows.

    Args:
        dataset: Hub id, folder, file or glob.
        split: Name of the split, without a slice.
        part: Slice such as `[:5%]`, or nothing.
        files: Local files that the rows come from; empty for a hub id.
        cache_dir: Folder where hashes of files are remembered; none are without it.
        streaming: Whether only `stream` will be used: then a look at the first rows of a hub id does not load it.
        max_rows: At most this many rows, drawn at random, and kept in their order.
        seed: Of that draw.
    """

    dataset: str
    split: str
    part: str
    files: tuple[Path, ...]
    cache_dir: Path | None = None
    streaming: bool = False
    max_rows: int | None = None
    seed: int = 0

    @cached_property
    def rows(self) -> Dataset:
        """The data set, with the published columns; JSON and JSON Lines files have the one column `RAW`.

        Raises:
            ValueError: If a file can't be read, the hub does not give the split, or no row is left.
        """
        rows = self._whole
        if self.max_rows is None or self.max_rows >= len(rows):
            return rows
        return rows.select(drawn_rows(len(rows), self.max_rows, self.seed))

    @cached_property
    def fingerprint(self) -> str:
        """Hash of what the rows are: of files their contents, else the hub's own fingerprint; and of what is taken."""
        whole = self._files_fingerprint if self.files else self._whole._fingerprint
        if self.max_rows is None:
            return whole
        return hashlib.sha256(f"{whole} {self.max_rows} {self.seed}".encode()).hexdigest()

    def columns(self) -> list[str]:
        """Names of the columns; of JSON, the keys of the first rows.

        Raises:
            ValueError: If none of the first rows is JSON.
        """
        first = self._first(FIRST_ROWS)
        if RAW not in first[0]:
            return list(first[0])
        rows = _decoded(first)
        if not rows:
            raise malformed(self.files)
        return sorted({name for row in rows for name in row})

    def head(self, num_rows: int) -> list[Row]:
        """The first rows of the split (of files, whatever the slice), decoded; malformed lines are left out."""
        return _decoded(self._first(num_rows))

    def stream(self) -> Iterator[Row]:
        """Rows one after the other, of JSON as `{RAW: text}`, for splits that do not fit the disk or the memory.

        `max_rows` takes the first ones: a stream's length is not known. Every process gets all rows.

        Raises:
            ValueError: As `rows`, and if the slice is not of row numbers from the start.
        """
        rows = iter_rows(self.files) if self.files else self._hub_stream()
        return islice(stream_part(rows, self.part), self.max_rows)

    def _first(self, num_rows: int) -> list[Row]:
        if not self.files and not self.streaming:  # perhaps without a network: what was loaded before will do
            return self._whole.select(range(min(num_rows, len(self._whole)))).to_list()
        first = list(islice(iter_rows(self.files) if self.files else self._hub_stream(), num_rows))
        if not first:
            raise no_rows(names_of(self.files) or self.dataset, self.split + self.part)
        return first

    @cached_property
    def _files_fingerprint(self) -> str:
        digest = hashlib.sha256(self.part.encode())
        for file, content in zip(self.files, file_hashes(self.files, self.cache_dir), strict=True):
            digest.update(ending(file).encode() + bytes.fromhex(content))
        return digest.hexdigest()

    @cached_property
    def _whole(self) -> Dataset:
        """The rows before some are drawn."""
        if self.files:
            return read_files(self.files, self.split, self.part, self._files_fingerprint)
        try:
            with quiet_datasets():
                rows = load_dataset(self.dataset, split=self.split + self.part)
        except Exception as error:  # of many types: datasets', the hub's, the network's
            raise ValueError(_why_not(self.dataset, self.split + self.part, error)) from error
        if not len(rows):
            raise no_rows(self.dataset, self.split + self.part)
        return rows

    def _hub_stream(self) -> Iterator[Row]:
        try:
            with quiet_datasets():
                rows = load_dataset(self.dataset, split=self.split, streaming=True)
        except Exception as error:  # as above
            raise ValueError(_why_not(self.dataset, self.split, error)) from error
        # Not `iter(rows)`: in a worker of a DataLoader that gives the rows of some files only.
        for columns in rows.iter(batch_size=TABLE_ROWS):
            yield from rows_of(columns)


def load_source(dataset: str, split: str, cache_dir: Path | None = None, streaming: bool = False) -> Source:
    """Find one split, such as `train_sft` or `train_sft[:5%]`; its rows are read when they are first asked for.

    Args:
        dataset: Hub id; a folder laid out as on the hub or written by `save_to_disk`; a file; or a glob.
        split: Name of the split, perhaps with a slice. Files and globs are all of their rows, whatever the name.
        cache_dir: Folder where hashes of files are remembered, so that the next start does not read them again.
        streaming: Whether only `stream` of it will be used.

    Raises:
        ValueError: If the folder, file or split can't be found, or a file is empty.
    """
    match = SPLIT.match(split)
    if match is None:
        raise ValueError(f"a split must look like train_sft, train_sft[:5%] or train_sft[100:200], got {split!r}")
    files = find_files(dataset, match["name"])
    check_files(files, match["name"])
    return Source(dataset, match["name"], match["slice"] or "", files, cache_dir, streaming)


def drawn_rows(num_rows: int, most: int, seed: int) -> list[int]:
    """`most` of `num_rows` row numbers, drawn at random without putting back, ascending."""
    return sorted(torch.randperm(num_rows, generator=seeded(seed))[:most].tolist())


def seeded(*numbers: int) -> torch.Generator:
    """A generator that is a function of all the numbers; the global random state has no part in it."""
    digest = hashlib.blake2b(" ".join(map(str, numbers)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest) >> 1)


def _decoded(rows: Sequence[Row]) -> list[Row]:
    decoded = [_row_or_none(row) for row in rows]
    return [row for row in decoded if row is not None]


def _row_or_none(row: Row) -> Row | None:
    try:
        return decode_line(row[RAW]) if RAW in row else row
    except BadRow:
        return None  # malformed lines are named, all at once, when the rows are encoded


def _why_not(dataset: str, split: str, error: Exception) -> str:
    cause = first_line(root_cause(error))
    if "Unknown split" in str(error) or "no data" in str(error) or "Bad split" in str(error):
        return f"`{dataset}` has no split {split!r}: {cause}"
    if Path(dataset).is_dir():
        return f"the folder {dataset} holds no files of split {split!r}, and datasets can't read it: {cause}"
    return (
        f"could not load the data set `{dataset}`: it is not a local file or folder, and the hub did not give it"
        f" ({first_line(error)}). Check the name and the network, or set `data.dataset` to a local folder or file"
    )
