"""JSON and JSON Lines: which texts a file holds, and its bad lines named."""

import json
from pathlib import Path
from typing import Any

from smollit.data.sources.files import Row, kind_of, open_bytes
from smollit.errors import first_line

# The key of the rows in a file that is one object, as in {"version": 1, "data": [...]}.
ROWS_KEYS = ("data", "rows", "examples", "instances", "train")


# ---- texts of rows


def is_lines(file: Path) -> bool:
    """Whether a .jsonl file has a row in each line: not if its first line is no object, and the whole file is JSON."""
    with open_bytes(file) as content:
        first = next((line for line in content if line.strip()), b"{}")
    try:
        parse_line(first.decode("utf-8-sig"))
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
    rows = _rows_of(values[0]) if len(values) == 1 else values
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
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
        value, end = decoder.raw_decode(text, end)
        values.append(value)


def _rows_of(value: Any) -> list[Any]:
    """The rows in the one value of a file: a list, an object of columns, an object with a list of rows, or a row."""
    if not isinstance(value, dict) or not value:
        return value if isinstance(value, list) else [value]
    columns = list(value.values())
    if all(isinstance(column, dict) for column in columns) and all(
        column.keys() == columns[0].keys() for column in columns
    ):
        return [{name: column[key] for name, column in value.items()} for key in columns[0]]  # as pandas writes them
    if all(isinstance(column, list) and len(column) == len(columns[0]) for column in columns) and not any(
        isinstance(item, (dict, list)) for column in columns for item in column
    ):
        return [dict(zip(value, cells, strict=True)) for cells in zip(*columns, strict=True)]
    for name in ROWS_KEYS:
        rows = value.get(name)
        if (
            isinstance(rows, list)
            and rows
            and all(isinstance(row, dict) and not row.keys() & {"role", "from"} for row in rows)
        ):
            return rows
    return [value]


# ---- lines, and what is wrong with them


def parse_line(line: str) -> Row:
    """The JSON object that a line of a JSON Lines file holds.

    Raises:
        ValueError: If the line is not JSON, or not an object.
    """
    try:
        row = json.loads(line.removeprefix("\ufeff"))
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from error
    except (ValueError, RecursionError) as error:  # a number of more digits than Python reads; lists without end
        raise ValueError(f"not JSON ({first_line(error)})") from error
    if not isinstance(row, dict):
        raise ValueError(f"expected an object {{...}}, got {type(row).__name__}")
    return row


def not_utf8(file: Path) -> ValueError:
    """The error for a file with bytes that are not text."""
    return ValueError("text that is not UTF-8:\n" + "\n".join(malformed_lines((file,))))


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
