"""Files opened; JSON and JSON Lines: which texts a file holds, and its bad lines named."""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from smollit.data.sources.files import COMPRESSIONS, Row, kind_of, names_of
from smollit.errors import first_line

# The key of the rows in a file that is one object, as in {"version": 1, "data": [...]}.
ROWS_KEYS = ("data", "rows", "examples", "instances", "train")
MESSAGE_KEYS = {"role", "from"}
SPLITS_KEYS = {"train", "validation", "val", "dev", "test"}


@contextmanager
def open_bytes(file: Path) -> Iterator[BufferedReader]:
    """The content of a file, decompressed according to its ending. (pyarrow reads .zst; Python does from 3.14 on.)

    Raises:
        ValueError: If the archive is broken or truncated.
    """
    try:
        with BufferedReader(pa.input_stream(str(file), compression=COMPRESSIONS.get(file.suffix.lower()))) as content:
            yield content
    except OSError as error:
        if file.suffix.lower() not in COMPRESSIONS:
            raise
        raise ValueError(
            f"{file} is not a whole {file.suffix} file: {first_line(error)}. Download it or compress it again"
        ) from error


# ---- texts of rows


def is_lines(file: Path) -> bool:
    """Whether a .jsonl file has a row in each line: not if its first line is no row, and the whole file is JSON.

    A list of messages is a row if it is not the only line: alone, it may be a list of rows.
    """
    with open_bytes(file) as content:
        lines = list(islice((line for line in content if line.strip()), 2)) or [b"{}"]
    try:
        parse_line(lines[0].decode("utf-8-sig"))
        if len(lines) == 1 and lines[0].decode("utf-8-sig").lstrip().startswith("["):
            return False
    except ValueError:  # text that is not UTF-8 is named when it is read
        try:
            return not list(_values(_text(file)))
        except ValueError:
            return True
    return True


def json_texts(file: Path) -> list[str]:
    """One JSON text per row of a file that is a list of rows, one object, several, or lines under the wrong ending."""
    text = _text(file)
    try:
        values = list(_values(text))
    except json.JSONDecodeError as error:
        if text.lstrip().startswith("["):
            raise ValueError(f"{file}:{error.lineno}: not JSON ({error.msg} at column {error.colno})") from error
        return [line for line in text.split("\n") if line.strip()]
    rows = _rows_of(values[0], file) if len(values) == 1 else values
    for index, row in enumerate(rows):
        if not isinstance(row, dict) and not _are_messages(row):
            raise ValueError(f"{file}: row {index} must be an object {{...}}, got {type(row).__name__}")
    return [json.dumps(row) for row in rows]


def _text(file: Path) -> str:
    try:
        with open_bytes(file) as content:
            return content.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise not_utf8(file) from error


def _values(text: str) -> list[Any]:
    """The JSON values in a text, with whitespace between them.

    Raises:
        json.JSONDecodeError: If it holds something else.
    """
    decoder, end = json.JSONDecoder(), 0
    values: list[Any] = []
    while True:
        end += len(text[end:]) - len(text[end:].lstrip())
        if end == len(text):
            return values
        try:
            value, end = decoder.raw_decode(text, end)
        except RecursionError as error:
            raise json.JSONDecodeError(first_line(error), text, end) from error
        values.append(value)


def _rows_of(value: Any, file: Path) -> list[Any]:
    """The rows in the one value of a file: a list, an object of columns or of rows by id, one with a list of rows, or a
    row.

    Raises:
        ValueError: If it has the rows of several splits.
    """
    if not isinstance(value, dict) or not value:
        return value if isinstance(value, list) else [value]
    columns = list(value.values())
    if all(isinstance(column, dict) and not column.keys() & MESSAGE_KEYS for column in columns):
        if all(column.keys() == columns[0].keys() and all(map(str.isdecimal, column)) for column in columns):
            # as pandas writes them
            return [{name: column[key] for name, column in value.items()} for key in columns[0]]
        if len(columns) > 1:
            return columns  # rows by their ids
    if all(isinstance(column, list) and len(column) == len(columns[0]) for column in columns) and all(
        _are_messages(item) or not isinstance(item, (dict, list)) for column in columns for item in column
    ):
        return [dict(zip(value, cells, strict=True)) for cells in zip(*columns, strict=True)]
    lists = [name for name, rows in value.items() if _are_rows(rows)]
    splits = sorted(SPLITS_KEYS.intersection(lists))
    if len(splits) > 1:
        raise ValueError(f"{file} holds the rows of several splits, {', '.join(splits)}: give each a file of its own")
    return next((value[name] for name in ROWS_KEYS if name in lists), [value])


def _are_rows(value: Any) -> bool:
    """Whether a value is a list of objects that are no messages."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(row, dict) and not row.keys() & MESSAGE_KEYS for row in value)
    )


def _are_messages(value: Any) -> bool:
    """Whether a value is a list of objects with roles."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(message, dict) and bool(message.keys() & MESSAGE_KEYS) for message in value)
    )


# ---- lines, and what is wrong with them


def parse_line(line: str) -> Row:
    """The JSON object that a line of a JSON Lines file holds; a list of messages is its column `messages`.

    Raises:
        ValueError: If the line is not JSON, or not an object.
    """
    try:
        row = json.loads(line.removeprefix("\ufeff"))
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from error
    except (ValueError, RecursionError) as error:  # a number of more digits than Python reads; lists without end
        raise ValueError(f"not JSON ({first_line(error)})") from error
    if _are_messages(row):
        return {"messages": row}
    if not isinstance(row, dict):
        raise ValueError(f"expected an object {{...}}, got {type(row).__name__}")
    return row


def not_utf8(file: Path) -> ValueError:
    """The error for a file with bytes that are not text."""
    lines = "\n".join(malformed_lines((file,)))
    return ValueError(f"text that is not UTF-8, convert it, as with iconv -f latin1 -t utf-8:\n{lines}")


def check_keys(texts: Iterable[str], files: tuple[Path, ...]) -> None:
    """Refuse JSON texts with an object that has a key twice, of which the parser would keep the last.

    Raises:
        ValueError: Names the key, and shows the text.
    """
    for text in texts:
        found: list[str] = []

        def look(pairs: list[tuple[str, Any]], found: list[str] = found) -> None:
            names = [name for name, _ in pairs]
            if len(set(names)) < len(names):
                found += [name for name in names if names.count(name) > 1]

        with suppress(ValueError, RecursionError):
            json.loads(text, object_pairs_hook=look)
        if found:
            raise ValueError(
                f"{names_of(files)}: an object has the key {found[0]!r} twice, and one of its values would be lost:"
                f" {text:.200}"
            )


def malformed(files: tuple[Path, ...]) -> ValueError:
    """The error that names the first lines that are not JSON."""
    return ValueError("malformed JSON Lines, fix these first:\n" + "\n".join(malformed_lines(files)))


def malformed_lines(files: tuple[Path, ...], most: int = 5) -> list[str]:
    """`file:line: what is wrong` of the first lines that are not JSON objects in UTF-8."""
    found: list[str] = []
    for file in files:
        with open_bytes(file) as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    text = line.decode("utf-8-sig")
                    if text.strip() and kind_of(file) in (".jsonl", ".json"):
                        parse_line(text)
                except UnicodeDecodeError as error:
                    byte = f"byte {error.object[error.start]:#04x} at {error.start + 1}"
                    found.append(f"{file}:{number}: not UTF-8 ({byte})")
                except ValueError as error:
                    found.append(f"{file}:{number}: {error}")
                if len(found) == most:
                    return found
    return found
