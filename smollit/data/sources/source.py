"""Source: the rows of one split of a Hub id, folder, file, glob or URL, and the fingerprint of their contents."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray

from smollit.data.sources import readers
from smollit.data.sources.files import Row, ending, names_of
from smollit.data.sources.hashes import file_hashes, seeded
from smollit.data.sources.hub import HubSplit, quiet_datasets
from smollit.data.sources.json_text import check_keys, malformed, parse_line
from smollit.data.sources.readers import RAW
from smollit.data.sources.where import Expression

FIRST_ROWS = 100  # rows of JSON that define the columns
SCANNED_ROWS = 2_000  # rows among which those that `where` keeps are looked for


class Regroup(Protocol):
    """Makes one row of those that belong together."""

    @property
    def key(self) -> str:
        """What the groups depend on besides the rows."""

    def __call__(self, rows: Iterable[Row]) -> Iterable[Row]:
        """The groups of all rows."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Rows of one split. They are read on first use, and `fingerprint` does not need them.

    Args:
        dataset: Hub id, folder, file, glob or URL.
        split: Name of the split, without a slice.
        subset: Configuration of a data set that has several.
        revision: Revision of a data set on the Hub: a branch, a tag or a commit.
        row_slice: Slice such as `[:5%]`, or nothing.
        files: Local files that the rows come from; empty for a Hub id.
        cache_dir: Folder where hashes of files are remembered; none are without it.
        streaming: Whether only `stream` is used: then reading the first rows of a Hub id does not load it.
        where: The rows to use: those for which the expression is true.
        regroup: Makes one row of those that belong together.
        max_rows: At most this many rows, drawn at random, and kept in their order.
        seed: Seed of that draw.
    """

    dataset: str
    split: str
    subset: str | None = None
    revision: str | None = None
    row_slice: str = ""
    files: tuple[Path, ...] = ()
    cache_dir: Path | None = None
    streaming: bool = False
    where: Expression | None = None
    regroup: Regroup | None = None
    max_rows: int | None = None
    seed: int = 0

    @cached_property
    def rows(self) -> Dataset:
        """The rows to use, with the published columns; JSON and JSON Lines files have the one column `RAW`.

        Raises:
            ValueError: If a file can't be read, the Hub does not have the split, or `where` leaves no row.
        """
        rows = self._grouped if self.regroup else self._all_rows
        return rows if self.numbers is None else rows.select(self.numbers)

    @cached_property
    def numbers(self) -> NDArray[np.int64] | None:
        """The numbers, in the slice, of the rows to use; None if all are."""
        # A group has a number of its own, and holds only rows that `where` keeps.
        numbers = None if self.regroup else self._where_numbers
        total = len(self._grouped) if self.regroup else len(self._all_rows) if numbers is None else len(numbers)
        if self.max_rows is None or self.max_rows >= total:
            return numbers
        drawn = np.sort(torch.randperm(total, generator=seeded(self.seed))[: self.max_rows].numpy())
        return drawn if numbers is None else numbers[drawn]

    def used_numbers(self) -> NDArray[np.int64]:
        """The numbers of the rows to use, in the slice."""
        return np.arange(self.num_rows) if self.numbers is None else self.numbers

    @property
    def num_rows(self) -> int:
        """Rows of the slice, or groups, that numbers count."""
        return len(self._grouped if self.regroup else self._all_rows)

    @property
    def left_out(self) -> dict[str, int]:
        """How many rows each setting leaves out."""
        kept = self._where_numbers
        return {} if kept is None else {"`data.where`": len(self._all_rows) - len(kept)}

    def row(self, number: int) -> Row:
        """The row of a number in the slice.

        Raises:
            ValueError: If it is not used.
        """
        if self.numbers is None:
            return self.rows[number]
        position = int(np.searchsorted(self.numbers, number))
        if position == len(self.numbers) or self.numbers[position] != number:
            raise ValueError(f"row {number} is left out by `where` or `max_rows`")
        return self.rows[position]

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the rows: of the contents of files or `datasets`' fingerprint, and of what chooses among them."""
        of_all = self._fingerprint_of(self.row_slice) if self.files else self._all_rows._fingerprint
        chosen = [f"revision {self.revision}"] if self.revision else []
        if self.where:
            chosen.append(f"where {self.where.text}")
        if self.regroup:
            chosen.append(self.regroup.key)
        if self.max_rows is not None:
            chosen.append(f"{self.max_rows} {self.seed}")
        return hashlib.sha256(" ".join([of_all, *chosen]).encode()).hexdigest() if chosen else of_all

    def columns(self) -> list[str]:
        """Names of the columns; of JSON, the keys of the first rows.

        Raises:
            ValueError: If none of the first rows is JSON.
        """
        first = self._first(FIRST_ROWS)
        if RAW not in first[0]:
            return list(first[0])
        rows = _parsed(first)
        if not rows:
            raise malformed(self.files)
        check_keys((row[RAW] for row in first), self.files)
        return list(dict.fromkeys(name for row in rows for name in row))

    def head(self, num_rows: int) -> list[Row]:
        """The first rows (of files, whatever the slice) that `where` keeps; JSON is parsed, or left out."""
        return _parsed(self._first(num_rows))

    def stream(self) -> Iterator[Row]:
        """Rows one after the other, of JSON as `{RAW: text}`, for splits that do not fit the disk or the memory.

        `max_rows` takes the first ones, since a stream's length is not known. Every process gets all rows.

        Raises:
            ValueError: As `rows`; if the slice is not of row numbers from the start, or rows would have to be grouped.
        """
        return (row for _, row in self.numbered())

    def numbered(self) -> Iterator[tuple[int, Row]]:
        """The rows of `stream` with their numbers in the slice.

        Raises:
            ValueError: As `stream`.
        """
        if self.regroup:
            raise ValueError("`data.streaming` can't group rows that belong together: set it to false")
        rows = readers.iter_rows(self.files) if self.files else self._hub.stream()
        numbered = enumerate(readers.slice_stream(rows, self.row_slice))
        wanted = ((number, row) for number, row in numbered if self._is_wanted(row)) if self.where else numbered
        return islice(wanted, self.max_rows)

    def _first(self, num_rows: int) -> list[Row]:
        """The first rows that `where` keeps; if it keeps none of the first, the first of all."""
        if not self.files and not self.streaming:  # works without a network if a copy was loaded earlier
            rows: Iterable[Row] = self._all_rows
        else:
            rows = readers.iter_rows(self.files) if self.files else self._hub.stream()
        first = list(islice(rows, SCANNED_ROWS if self.where else num_rows))
        if not first:
            raise self._no_rows()
        kept = [row for row in first if self._is_wanted(row)] if self.where else []
        return (kept or first)[:num_rows]

    def _is_wanted(self, row: Row) -> bool:
        """Whether `where` is true; a line that is not JSON is kept, and named when it is read."""
        assert self.where is not None
        return all(map(self.where.holds, _parsed([row])))

    @cached_property
    def _where_numbers(self) -> NDArray[np.int64] | None:
        if self.where is None:
            return None
        numbers = np.flatnonzero([self._is_wanted(row) for row in self._all_rows])
        if not len(numbers):
            raise ValueError(f"`data.where: {self.where.text}` is true for no row of {self.split} of {self.dataset}")
        return numbers

    @cached_property
    def _grouped(self) -> Dataset:
        """The groups of the rows that `where` keeps, as JSON."""
        assert self.regroup is not None
        rows = self._all_rows if self._where_numbers is None else self._all_rows.select(self._where_numbers)
        parsed = (one for row in rows for one in _parsed([row]))
        return Dataset.from_dict({RAW: [json.dumps(group, default=str) for group in self.regroup(parsed)]})

    @cached_property
    def _contents(self) -> list[bytes]:
        hashes = file_hashes(self.files, self.cache_dir)
        return [ending(file).encode() + bytes.fromhex(hashed) for file, hashed in zip(self.files, hashes, strict=True)]

    def _fingerprint_of(self, row_slice: str) -> str:
        return hashlib.sha256(b"".join([row_slice.encode(), *self._contents])).hexdigest()

    @cached_property
    def _all_rows(self) -> Dataset:
        """The rows of the slice, before `max_rows` of them are drawn."""
        try:
            with quiet_datasets():
                if self.files:
                    whole = readers.read_files(self.files, fingerprint=self._fingerprint_of(""))
                    rows = readers.slice_rows(whole, self.row_slice)
                else:
                    rows = self._hub.rows(self.row_slice)
        except Exception as error:  # of many types: datasets', pyarrow's, the hub's, the network's
            if self.files and "corresponds to no data" not in str(error):
                raise readers.read_error(self.files, error) from error
            raise (self._no_rows() if self.files else self._hub.error(error, self.row_slice)) from error
        if not len(rows):
            raise self._no_rows()
        return rows

    @property
    def _hub(self) -> HubSplit:
        return HubSplit(self.dataset, self.split, self.subset, self.revision)

    def _no_rows(self) -> ValueError:
        return ValueError(f"split {self.split}{self.row_slice} of {names_of(self.files) or self.dataset} has no rows")


def _parsed(rows: Sequence[Row]) -> list[Row]:
    parsed = []
    for row in rows:
        with suppress(ValueError):
            parsed.append(parse_line(row[RAW]) if RAW in row else row)
    return parsed
