"""Files of every kind, and the rows that come of them: `from tests.data.sources.conftest import write`."""

import bz2
import csv
import gzip
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from datasets import Dataset

from smollit.data.formats.converters import decode_row
from smollit.data.sources.mixture import load_source

Row = dict[str, Any]
ROWS: list[Row] = [{"prompt": f"p{number}", "chosen": "4", "rejected": "NA"} for number in range(6)]


def pack(content: bytes, ending: str) -> bytes:
    """Content as a .gz, .bz2, .zst or plain file."""
    if ending.endswith((".gz", ".bz2")):
        return gzip.compress(content) if ending.endswith(".gz") else bz2.compress(content)
    return pa.Codec("zstd").compress(content, asbytes=True) if ending.endswith(".zst") else content


def text(rows: list[Row], ending: str) -> bytes:
    if ".csv" in ending or ".tsv" in ending:
        file = io.StringIO()
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if ".tsv" in ending else ",")
        writer.writeheader()
        writer.writerows(rows)
        return file.getvalue().encode()
    return (
        json.dumps(rows) if ".json" in ending and ".jsonl" not in ending else "\n".join(map(json.dumps, rows))
    ).encode()


def write(path: Path, rows: list[Row] | str | bytes) -> str:
    """Rows as a file of the kind that the path's ending says; a text or bytes as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(rows, str | bytes):
        path.write_bytes(rows if isinstance(rows, bytes) else rows.encode())
    elif path.suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(path)
    elif path.suffix == ".arrow":
        table = pa.Table.from_pylist(rows)
        with pa.ipc.new_stream(path, table.schema) as file:
            file.write_table(table)
    else:
        path.write_bytes(pack(text(rows, path.name), path.suffix))
    return str(path)


def decoded(rows: Iterable[Row]) -> list[Row]:
    return [decode_row(row) for row in rows]


def rows_of(dataset: str, split: str = "train") -> list[Row]:
    """All rows of a split, once it was seen that they are the same when streamed, where that can be done."""
    source = load_source(dataset, split)
    rows = decoded(source.rows)
    if "%" not in split and "-" not in split:
        assert decoded(source.stream()) == rows
    return rows


def read_error(dataset: str, split: str = "train") -> str:
    """The one sentence that both ways of reading end in."""
    with pytest.raises(ValueError) as loaded:  # noqa: PT011  (the message is what the tests look at)
        _ = load_source(dataset, split).rows
    with pytest.raises(ValueError) as streamed:  # noqa: PT011
        list(load_source(dataset, split).stream())
    assert str(loaded.value) == str(streamed.value)
    return str(loaded.value)
