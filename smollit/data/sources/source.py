"""Source: the rows of one split of a Hub id, folder, file, glob or URL, and the fingerprint of their contents."""

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import torch
from datasets import Dataset, IterableDataset, load_dataset

from smollit.data.sources import readers
from smollit.data.sources.files import Row, check_files, ending, find_files, malformed, names_of, parse_line, root_cause
from smollit.data.sources.readers import RAW
from smollit.errors import first_line

SPLIT = re.compile(r"^(?P<name>[\w.\-]+)(?P<slice>\[-?\d*%?:-?\d*%?\])?$")
FIRST_ROWS = 100  # rows of JSON that define the columns
HASHES = "file_hashes.json"  # in the cache folder: {path: [size, mtime, ctime, inode, hash]}
# A file that changed so recently may change again within one tick of the disk's clock, with equal times.
SETTLED_NS = 2_000_000_000


@dataclass(frozen=True, kw_only=True)
class Source:
    """Rows of one split. They are read on first use, and `fingerprint` does not need them.

    Args:
        dataset: Hub id, folder, file, glob or URL.
        split: Name of the split, without a slice.
        row_slice: Slice such as `[:5%]`, or nothing.
        files: Local files that the rows come from; empty for a Hub id.
        cache_dir: Folder where hashes of files are remembered; none are without it.
        streaming: Whether only `stream` is used: then reading the first rows of a Hub id does not load it.
        max_rows: At most this many rows, drawn at random, and kept in their order.
        seed: Seed of that draw.
    """

    dataset: str
    split: str
    row_slice: str = ""
    files: tuple[Path, ...] = ()
    cache_dir: Path | None = None
    streaming: bool = False
    max_rows: int | None = None
    seed: int = 0

    @cached_property
    def rows(self) -> Dataset:
        """The data set, with the published columns; JSON and JSON Lines files have the one column `RAW`.

        Raises:
            ValueError: If a file can't be read, the Hub does not have the split, or no row is left.
        """
        rows = self._all_rows
        if self.max_rows is None or self.max_rows >= len(rows):
            return rows
        drawn = torch.randperm(len(rows), generator=seeded(self.seed))[: self.max_rows]
        return rows.select(sorted(drawn.tolist()))

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the rows: of the contents of files or `datasets`' fingerprint, and of the slice and the cap."""
        of_all = self._files_fingerprint if self.files else self._all_rows._fingerprint
        if self.max_rows is None:
            return of_all
        return hashlib.sha256(f"{of_all} {self.max_rows} {self.seed}".encode()).hexdigest()

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
        return sorted({name for row in rows for name in row})

    def head(self, num_rows: int) -> list[Row]:
        """The first rows (of files, whatever the slice), with JSON parsed; encoding names the malformed ones."""
        return _parsed(self._first(num_rows))

    def stream(self) -> Iterator[Row]:
        """Rows one after the other, of JSON as `{RAW: text}`, for splits that do not fit the disk or the memory.

        `max_rows` takes the first ones, since a stream's length is not known. Every process gets all rows.

        Raises:
            ValueError: As `rows`, and if the slice is not of row numbers from the start.
        """
        rows = readers.iter_rows(self.files) if self.files else self._hub_stream()
        return islice(readers.slice_stream(rows, self.row_slice), self.max_rows)

    def _first(self, num_rows: int) -> list[Row]:
        if not self.files and not self.streaming:  # works without a network if a copy was loaded earlier
            return self._all_rows.select(range(min(num_rows, len(self._all_rows)))).to_list()
        first = list(islice(readers.iter_rows(self.files) if self.files else self._hub_stream(), num_rows))
        if not first:
            raise self._no_rows()
        return first

    @cached_property
    def _files_fingerprint(self) -> str:
        digest = hashlib.sha256(self.row_slice.encode())
        for file, content in zip(self.files, file_hashes(self.files, self.cache_dir), strict=True):
            digest.update(ending(file).encode() + bytes.fromhex(content))
        return digest.hexdigest()

    @cached_property
    def _all_rows(self) -> Dataset:
        """The rows of the slice, before `max_rows` of them are drawn."""
        try:
            with readers.quiet_datasets():
                if self.files:
                    rows = readers.slice_rows(
                        readers.read_files(self.files, fingerprint=self._files_fingerprint), self.row_slice
                    )
                else:
                    rows = load_dataset(self.dataset, split=self.split + self.row_slice)
        except Exception as error:  # of many types: datasets', pyarrow's, the hub's, the network's
            if self.files and "corresponds to no data" not in str(error):
                raise readers.read_error(self.files, error) from error
            raise (self._no_rows() if self.files else self._hub_error(error)) from error
        if not len(rows):
            raise self._no_rows()
        return rows

    def _hub_stream(self) -> Iterator[Row]:
        try:
            with readers.quiet_datasets():
                rows: IterableDataset = load_dataset(self.dataset, split=self.split, streaming=True)
        except Exception as error:  # as above
            raise self._hub_error(error) from error
        # Not `iter(rows)`: in a worker of a DataLoader that gives the rows of some files only.
        for columns in rows.iter(batch_size=readers.TABLE_ROWS):
            yield from readers.rows_of(columns)

    def _no_rows(self) -> ValueError:
        return ValueError(f"split {self.split}{self.row_slice} of {names_of(self.files) or self.dataset} has no rows")

    def _hub_error(self, error: Exception) -> ValueError:
        """Why `datasets` can't load the split, in one sentence, and what to do."""
        cause = first_line(root_cause(error))
        if any(words in str(error) for words in ("Unknown split", "no data", "Bad split")):
            return ValueError(f"`{self.dataset}` has no split '{self.split}{self.row_slice}': {cause}")
        if Path(self.dataset).is_dir():
            return ValueError(
                f"the folder {self.dataset} holds no files of split {self.split!r}, and datasets can't read it: {cause}"
            )
        return ValueError(
            f"could not load the data set `{self.dataset}`: not a local file or folder, and not found on the Hub"
            f" ({first_line(error)}). Check the name and the network, or set `data.dataset` to a local folder or file"
        )


def load_source(dataset: str, split: str, *, cache_dir: Path | None = None, streaming: bool = False) -> Source:
    """Find one split, such as `train_sft` or `train_sft[:5%]`; its rows are read on first use.

    Args:
        dataset: Hub id; a folder laid out as on the Hub or written by `save_to_disk`; a file; a glob; or a URL.
        split: Name of the split, perhaps with a slice. Files, globs and URLs give all of their rows, whatever the name.
        cache_dir: Folder of downloads and of the remembered hashes of files, so that the next start reads neither.
        streaming: Whether only `stream` is used.

    Raises:
        ValueError: If the folder, file or split can't be found, a URL can't be downloaded, or a file is empty.
    """
    match = SPLIT.match(split)
    if match is None:
        raise ValueError(f"a split must look like train_sft, train_sft[:5%] or train_sft[100:200], got {split!r}")
    files = find_files(dataset, match["name"], cache_dir)
    check_files(files, match["name"])
    return Source(
        dataset=dataset,
        split=match["name"],
        row_slice=match["slice"] or "",
        files=files,
        cache_dir=cache_dir,
        streaming=streaming,
    )


def seeded(*numbers: int) -> torch.Generator:
    """A generator that depends on these numbers alone, not on the global random state."""
    digest = hashlib.blake2b(" ".join(map(str, numbers)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest) >> 1)


def _parsed(rows: Sequence[Row]) -> list[Row]:
    parsed = []
    for row in rows:
        with suppress(ValueError):
            parsed.append(parse_line(row[RAW]) if RAW in row else row)
    return parsed


# ---- hashes of contents, remembered: an unchanged file is not read again


def file_hashes(files: Sequence[Path], cache_dir: Path | None) -> list[str]:
    """SHA-256 of each file's content; without `cache_dir`, nothing is remembered."""
    known = _remembered(cache_dir / HASHES) if cache_dir else {}
    found: dict[str, list[int | str]] = {}
    hashes = []
    for file in files:
        name, state = str(file.resolve()), _state(file)
        if known.get(name, [])[:-1] == state:
            hashes.append(str(known[name][-1]))
            continue
        with file.open("rb") as content:
            hashes.append(hashlib.file_digest(content, "sha256").hexdigest())
        is_settled = max(state[1:3]) < time.time_ns() - SETTLED_NS
        if is_settled and _state(file) == state:  # not written to while it was read
            found[name] = [*state, hashes[-1]]
    if cache_dir and found:
        _remember(cache_dir / HASHES, found)
    return hashes


def _state(file: Path) -> list[int]:
    stat = file.stat()  # ctime changes also when a copy keeps the old mtime
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def _remembered(memory: Path) -> dict[str, list[int | str]]:
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
        return {name: entry for name, entry in known.items() if isinstance(entry, list) and len(entry) == 5}
    except (OSError, ValueError, AttributeError):  # none yet, or not ours: files are hashed again
        return {}


def _remember(memory: Path, found: dict[str, list[int | str]]) -> None:
    """Add entries atomically. When two processes save at once, some entries are lost, and hashed again later."""
    with suppress(OSError):  # a cache folder that can't be written to is no reason to stop
        memory.parent.mkdir(parents=True, exist_ok=True)
        partial = memory.with_name(f".{memory.name}.{os.getpid()}")
        partial.write_text(json.dumps(_remembered(memory) | found), encoding="utf-8")
        os.replace(partial, memory)
