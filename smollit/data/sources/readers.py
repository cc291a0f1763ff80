"""Rows of local files: one after the other, or as a data set on disk."""

import csv
import json
import re
import sys
from collections.abc import Iterator
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, ReadInstruction, Value, concatenate_datasets, load_dataset

from smollit.data.sources.files import iter_lines, kind_of, names_of, not_utf8, open_bytes, quiet_datasets, root_cause
from smollit.data.sources.raw import RAW
from smollit.names import first_line

Row = dict[str, Any]
TABLE_ROWS = 256  # rows that are held at once of a parquet or Arrow file
ROW_NUMBERS = re.compile(r"\[(\d*):(\d*)\]")


# ---- one after the other


def iter_rows(files: tuple[Path, ...]) -> Iterator[Row]:
    """Rows of files in their order; of JSON and JSON Lines, `{RAW: text}`. Only .json files are held as a whole.

    Raises:
        ValueError: If a file can't be read, with its name, and its line where there are lines.
    """
    for file in files:
        yield from iter_file(file)


def iter_file(file: Path) -> Iterator[Row]:
    """Rows of one file."""
    kind = kind_of(file)
    if kind == ".jsonl":
        return ({RAW: line} for line in iter_lines(file))
    if kind == ".json":
        return ({RAW: text} for text in _json_texts(file))
    return _csv_rows(file) if kind == ".csv" else _table_rows(file)


def _json_texts(file: Path) -> list[str]:
    """One JSON text per row of a file that is a list of rows, one row, or JSON Lines under the wrong ending."""
    try:
        with open_bytes(file) as content:
            text = content.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise not_utf8(file) from error
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if text.lstrip().startswith("["):
            raise ValueError(f"{file}:{error.lineno}: not JSON ({error.msg} at column {error.colno})") from error
        return [line for line in text.split("\n") if line.strip()]
    rows = value if isinstance(value, list) else [value]
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"{file}: row {index} must be an object {{...}}, got {type(row).__name__}")
    return [json.dumps(row) for row in rows]


def _csv_rows(file: Path) -> Iterator[Row]:
    """Cells are text: "4" is not a number, and "NA" or an empty cell is not null. Missing last cells are null."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # Python's own limit of 131,072 is less than a long chat
    with open_bytes(file) as content:
        # strict: a quote that is never closed would swallow the rest of the file in silence
        cells = csv.reader(TextIOWrapper(content, encoding="utf-8-sig", newline=""), strict=True)
        try:
            header = next(cells, [])
            _check_header(file, header)
            for row in filter(None, cells):
                if len(row) > len(header):
                    raise ValueError(
                        f"could not read {file}: rows have more cells than the header; quote text with commas"
                        f" (line {cells.line_num} has {len(row)}, the header {len(header)})"
                    )
                yield dict(zip(header, row + [None] * (len(header) - len(row)), strict=True))
        except UnicodeDecodeError as error:
            raise not_utf8(file) from error
        except csv.Error as error:
            raise ValueError(f"could not read {file}: {error} (line {cells.line_num})") from error


def csv_header(files: tuple[Path, ...]) -> list[str]:
    """The columns of CSV files.

    Raises:
        ValueError: If they differ between the files.
    """
    headers = {}
    for file in files:
        with open_bytes(file) as content:
            headers[file] = next(csv.reader(TextIOWrapper(content, encoding="utf-8-sig", errors="replace")), [])
    first = headers[files[0]]
    for file, header in headers.items():
        if sorted(header) != sorted(first):
            raise ValueError(f"{file} has the columns {', '.join(header)}, and {files[0]} has {', '.join(first)}")
    return first


def _check_header(file: Path, header: list[str]) -> None:
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise ValueError(f"could not read {file}: its header names the column {twice[0]!r} twice (line 1)")


def _table_rows(file: Path) -> Iterator[Row]:
    """Rows of a parquet or Arrow file, decoded as `datasets` does."""
    try:
        for table in _parquet_tables(file) if kind_of(file) == ".parquet" else _arrow_tables(file):
            yield from rows_of(Dataset(table)[:])
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"could not read {file}: {first_line(error)}") from error


def rows_of(columns: dict[str, list[Any]]) -> Iterator[Row]:
    """Columns of equal length -> rows."""
    return (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))


def _parquet_tables(file: Path) -> Iterator[pa.Table]:
    with pq.ParquetFile(file) as content:
        # Without threads: pyarrow's may hang in a process that was forked.
        for batch in content.iter_batches(TABLE_ROWS, use_threads=False):
            yield pa.Table.from_batches([batch])


def _arrow_tables(file: Path) -> Iterator[pa.Table]:
    rows = _map_arrow(file)
    for start in range(0, len(rows), TABLE_ROWS):
        yield rows.data.slice(start, TABLE_ROWS).combine_chunks()


def _map_arrow(file: Path) -> Dataset:
    """An Arrow file as a data set that stays on the disk; Arrow has a format for streams and one for files."""
    try:
        return Dataset.from_file(str(file))
    except pa.ArrowInvalid:
        with pa.memory_map(str(file)) as content:
            return Dataset(pa.ipc.open_file(content).read_all())


# ---- as a data set


def read_files(files: tuple[Path, ...], split: str, part: str, fingerprint: str) -> Dataset:
    """Rows of local files of one kind; JSON and JSON Lines have the one column `RAW`, which the encoder decodes.

    Args:
        files: Files of one kind.
        split: The split's name, for errors.
        part: Slice such as `[:5%]`, or nothing.
        fingerprint: Hash of the files' contents: what `datasets` keeps is found again by it.

    Raises:
        ValueError: If a file can't be read, or no row is left.
    """
    try:
        with quiet_datasets():
            rows = _read_whole(files, fingerprint)
    except Exception as error:  # datasets raises its own and pyarrow's errors for a file it can't read, around ours
        if "corresponds to no data" in str(error):
            raise no_rows(names_of(files), split + part) from error
        ours = next((link for link in _chain(error) if type(link) is ValueError), None)
        raise ours or ValueError(f"could not read {names_of(files)}: {first_line(root_cause(error))}") from error
    rows = take_part(rows, part)
    if not rows:
        raise no_rows(names_of(files), split + part)
    return rows


def _read_whole(files: tuple[Path, ...], fingerprint: str) -> Dataset:
    kind = kind_of(files[0])
    if kind == ".arrow":
        return concatenate_datasets([_map_arrow(file) for file in files])
    if kind == ".parquet":
        # Any split name will do for files that are named themselves.
        return load_dataset("parquet", data_files={"rows": [str(file) for file in files]}, split="rows")
    names = [RAW] if kind in (".jsonl", ".json") else csv_header(files)
    features = Features({name: Value("string") for name in names})
    return Dataset.from_generator(_generate, features=features, gen_kwargs={"files": files, "fingerprint": fingerprint})


def _generate(files: tuple[Path, ...], fingerprint: str) -> Iterator[Row]:
    """Rows for `Dataset.from_generator`, which finds again what it kept by the arguments: so contents are of them."""
    return iter_rows(files)


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__


def no_rows(where: str, split: str) -> ValueError:
    """The error for a split that is empty."""
    return ValueError(f"split {split} of {where} has no rows")


def take_part(rows: Dataset, part: str) -> Dataset:
    """The slice `[:5%]` or `[100:200]` of rows; all of them when `part` is empty."""
    if not part:
        return rows
    piece = ReadInstruction.from_spec(f"rows{part}").to_absolute({"rows": len(rows)})[0]
    wanted = range(len(rows))[piece.from_ : piece.to]
    return rows.select(wanted if wanted else [])


def stream_part(rows: Iterator[Row], part: str) -> Iterator[Row]:
    """The slice `[100:200]` of rows that are not counted beforehand.

    Raises:
        ValueError: If the slice is of percents or counts from the end.
    """
    numbers = ROW_NUMBERS.fullmatch(part)
    if part and numbers is None:
        raise ValueError(f"a stream's length is not known: of {part}, give row numbers from the start, as [1000:]")
    first, end = numbers.groups() if numbers else ("", "")
    return islice(rows, int(first or 0), int(end) if end else None)
