"""The rows of files: one after the other, or as a `datasets.Dataset`; and slices of both.

JSON and JSON Lines stay text, in the one column `RAW`, until each row is decoded separately: Arrow has one type per
column, and would merge the keys of all rows. `datasets` reads parquet and Arrow; CSV and JSON are read here, because
its readers name no line, and accept rows with too many cells and columns with the same name.
"""

import csv
import re
import sys
from collections.abc import Iterable, Iterator
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import (
    Dataset,
    Features,
    ReadInstruction,
    Value,
    concatenate_datasets,
    load_dataset,
)
from datasets.table import CastError

from smollit.data.sources.columns import features_without_maps, undecoded
from smollit.data.sources.files import Row, ending, kind_of, names_of
from smollit.data.sources.json_text import is_lines, json_texts, malformed, not_utf8, open_bytes, parse_line
from smollit.errors import first_line, root_cause

RAW = "raw_json_line"  # the one column of a JSON or JSON Lines file
TABLE_ROWS = 256  # rows of a parquet or Arrow file that are in memory at once
ROW_NUMBERS = re.compile(r"\[(\d*):(\d*)\]")


# ---- one after the other


def iter_rows(files: tuple[Path, ...]) -> Iterator[Row]:
    """Rows of files in their order; of JSON and JSON Lines, `{RAW: text}`. Only .json files are read as a whole.

    Raises:
        ValueError: If a file can't be read, with its name, and its line where there are lines.
    """
    for file in files:
        yield from iter_file(file)


def iter_file(file: Path) -> Iterator[Row]:
    """Rows of one file."""
    kind = kind_of(file)
    if kind == ".jsonl" and is_lines(file):
        return ({RAW: line} for line in iter_lines(file))
    if kind in (".jsonl", ".json"):
        return ({RAW: text} for text in json_texts(file))
    return _csv_rows(file) if kind == ".csv" else _table_rows(file)


def iter_lines(file: Path) -> Iterator[str]:
    """Lines of a text file without their ends; lines of whitespace are left out.

    Raises:
        ValueError: If the text is not UTF-8, with the numbers of the first such lines.
    """
    with open_bytes(file) as content:
        for line in content:
            try:
                text = line.decode().rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise not_utf8(file) from error
            if text.strip():
                yield text


def _csv_rows(file: Path) -> Iterator[Row]:
    """Cells are text: "4" is not a number, and "NA" or an empty cell is not null. Missing last cells are null."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # Python's own limit of 131,072 is less than a long chat
    with open_bytes(file) as content:
        # strict: an unclosed quote would silently swallow the rest of the file
        text = TextIOWrapper(content, encoding="utf-8-sig", newline="")
        try:
            cells = csv.reader(text, delimiter=_delimiter(file), strict=True)
            header = [name.strip() for name in next(cells, [])]
            twice = sorted({name for name in header if header.count(name) > 1})
            if twice:
                raise ValueError(f"could not read {file}: its header names the column {twice[0]!r} twice (line 1)")
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


def _delimiter(file: Path) -> str:
    """`,`, or `;`, a tab or `|` where the header has one of these and no comma; a tab in .tsv files."""
    if ending(file).startswith(".tsv"):
        return "\t"
    with open_bytes(file) as content:
        header = content.readline()
    return next((mark.decode() for mark in (b",", b";", b"\t", b"|") if mark in header), ",")


def csv_header(files: tuple[Path, ...]) -> list[str]:
    """The columns of CSV files.

    Raises:
        ValueError: If they differ between the files.
    """
    headers = {}
    for file in files:
        with open_bytes(file) as content:
            text = TextIOWrapper(content, encoding="utf-8-sig", errors="replace")
            headers[file] = [name.strip() for name in next(csv.reader(text, delimiter=_delimiter(file)), [])]
    first = headers[files[0]]
    for file, header in headers.items():
        if sorted(header) != sorted(first):
            raise ValueError(f"{file} has the columns {', '.join(header)}, and {files[0]} has {', '.join(first)}")
    return first


def _table_rows(file: Path) -> Iterator[Row]:
    """Rows of a parquet or Arrow file."""
    try:
        if kind_of(file) == ".arrow":
            for columns in _map_arrow(file).iter(TABLE_ROWS):
                yield from rows_of(columns)
            return
        with pq.ParquetFile(file) as content:
            # Without threads: pyarrow's may hang in a forked process.
            features = features_without_maps(content.schema_arrow, file.parent)
            columns = None if features is None else list(features)
            for batch in content.iter_batches(TABLE_ROWS, columns=columns, use_threads=False):
                yield from rows_of(undecoded(Dataset(pa.Table.from_batches([batch])))[:])
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"could not read {file}: {first_line(error)}") from error


def rows_of(columns: dict[str, list[Any]]) -> Iterator[Row]:
    """Columns of equal length -> rows."""
    return (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))


def columns_of(rows: Iterable[Row]) -> dict[str, list[Any]]:
    """Rows -> columns; a missing value is null."""
    rows = list(rows)
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _map_arrow(file: Path) -> Dataset:
    """An Arrow file as a data set that stays on the disk; Arrow has a format for streams and one for files."""
    try:
        return undecoded(Dataset.from_file(str(file)))
    except pa.ArrowInvalid:
        with pa.memory_map(str(file)) as content:
            return undecoded(Dataset(pa.ipc.open_file(content).read_all()))


# ---- as a data set


def read_files(files: tuple[Path, ...], *, fingerprint: str) -> Dataset:
    """Rows of local files of one kind; JSON and JSON Lines have the one column `RAW`, which `formats` decodes.

    Args:
        files: Files of one kind.
        fingerprint: Hash of the files' contents, by which `datasets` finds its own copy again.

    Raises:
        ValueError: If a file can't be read.
    """
    kind = kind_of(files[0])
    if kind == ".arrow":
        return concatenate_datasets([_map_arrow(file) for file in files])
    if kind == ".parquet":
        # `datasets` finds its copy by this name and the times of the files, and a file may change and keep its time.
        name, data_files = f"rows-{fingerprint[:16]}", {"rows": [str(file) for file in files]}
        features = features_without_maps(pq.read_schema(files[0]), files[0].parent)
        columns = None if features is None else list(features)
        rows = load_dataset("parquet", name, data_files=data_files, split="rows", features=features, columns=columns)
        return undecoded(rows)
    names = [RAW] if kind in (".jsonl", ".json") else csv_header(files)
    features = Features({name: Value("string") for name in names})
    return Dataset.from_generator(_generate, features=features, gen_kwargs={"files": files, "fingerprint": fingerprint})


def _generate(files: tuple[Path, ...], fingerprint: str) -> Iterator[Row]:
    """Rows for `Dataset.from_generator`, which keys its copy by the arguments, a hash of the contents among them.

    Raises:
        ValueError: If a line is not JSON, before any row is tokenized, with the file and the line.
    """
    for row in iter_rows(files):
        if RAW in row:
            try:
                parse_line(row[RAW])
            except ValueError as error:
                raise malformed(files) from error
        yield row


def read_error(files: tuple[Path, ...], error: Exception) -> ValueError:
    """The error of `read_files` as a sentence: smollit's unchanged, else the cause that `datasets` wrapped."""
    ours: BaseException | None = error
    while ours is not None and type(ours) is not ValueError:
        ours = ours.__cause__
    cause = root_cause(error)
    what = "their columns or types differ" if isinstance(cause, CastError) else first_line(cause)
    return ours or ValueError(f"could not read {names_of(files)}: {what}")


# ---- slices


def slice_rows(rows: Dataset, row_slice: str) -> Dataset:
    """The slice `[:5%]` or `[100:200]` of rows; all of them when it is empty."""
    if not row_slice:
        return rows
    piece = ReadInstruction.from_spec(f"rows{row_slice}").to_absolute({"rows": len(rows)})[0]
    wanted = range(len(rows))[piece.from_ : piece.to]
    return rows.select(wanted if wanted else [])


def slice_stream(rows: Iterator[Row], row_slice: str) -> Iterator[Row]:
    """The slice `[100:200]` of rows whose number is not known.

    Raises:
        ValueError: If the slice is in percent, or counts from the end.
    """
    numbers = ROW_NUMBERS.fullmatch(row_slice)
    if row_slice and numbers is None:
        raise ValueError(f"a stream's length is not known: instead of {row_slice}, give row numbers, as [1000:]")
    first, end = numbers.groups() if numbers else ("", "")
    return islice(rows, int(first or 0), int(end) if end else None)
