"""Local files of rows: which files make up a split, and reading them with errors that name file and line."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datasets import (
    Dataset,
    ReadInstruction,
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
    load_dataset,
)

from smollit.data.encode import RAW
from smollit.names import first_line, is_path

BUILDERS = {".jsonl": "text", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
SHARD = re.compile(r"-\d+-of-\d+$")
# CSV cells are text: "4" is not a number, and "NA" or an empty cell is not null.
CSV_TEXT = dict.fromkeys(("prompt", "chosen", "rejected", "messages"), str)


@contextmanager
def quiet_datasets() -> Iterator[None]:
    """Without datasets' progress bars for reading, filtering and saving; as they were before afterwards."""
    were_on = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if were_on:
            enable_progress_bars()


def find_files(dataset: str, split: str) -> tuple[Path, ...]:
    """The files of a split: the file itself, or the folder's `<split>*` files; none for a hub id or an other layout.

    Raises:
        ValueError: If the path does not exist, its ending is unknown, or the folder has other splits only.
    """
    path = Path(dataset).expanduser()
    if path.is_file():
        if path.suffix not in BUILDERS:
            raise ValueError(f"`data.dataset` is {path}, but only {', '.join(BUILDERS)} files can be read")
        return (path,)
    if path.is_dir():
        return _files_of_split(path, split)
    if path.suffix in BUILDERS or is_path(dataset):
        raise ValueError(f"`data.dataset` is {dataset!r}, and there is no such file or folder: check the path")
    return ()


def _files_of_split(folder: Path, split: str) -> tuple[Path, ...]:
    by_split: dict[str, list[Path]] = {}
    for file in sorted([*folder.glob("*"), *folder.glob("data/*")]):
        if file.suffix in BUILDERS:
            by_split.setdefault(SHARD.sub("", file.stem), []).append(file)
    readme = folder / "README.md"
    has_own_layout = readme.is_file() and "\nconfigs:" in readme.read_text(encoding="utf-8", errors="replace")
    if by_split and split not in by_split and not has_own_layout:
        raise ValueError(f"{folder} has no split {split!r}: its files are of the splits {', '.join(sorted(by_split))}")
    return tuple(by_split.get(split, ()))


def read_files(files: tuple[Path, ...], split: str, part: str) -> Dataset:
    """Rows of local files of one kind; JSON and JSON Lines have the one column `RAW`, which the encoder decodes.

    Raises:
        ValueError: If a file is empty or can't be read, or no row is left.
    """
    suffixes = {file.suffix for file in files}
    if len(suffixes) > 1:
        raise ValueError(f"the files of split {split!r} are of several kinds: {_names(files)}")
    for file in files:
        if file.stat().st_size == 0:
            raise ValueError(f"{file} is empty: a data set needs at least one row")
    try:
        rows = _read_json(files, part) if suffixes == {".json"} else _read_by_datasets(files, suffixes.pop(), part)
    except UnicodeDecodeError as error:
        raise ValueError("text that is not UTF-8:\n" + "\n".join(malformed_lines(files))) from error
    except ValueError as error:
        if "corresponds to no data" not in str(error):
            raise
        rows = None
    if not rows:
        raise ValueError(f"split {split}{part} of {_names(files)} has no rows")
    return rows


def _read_by_datasets(files: tuple[Path, ...], suffix: str, part: str) -> Dataset:
    builder = BUILDERS[suffix]
    options = {"converters": CSV_TEXT, "keep_default_na": False} if builder == "csv" else {}
    paths = [str(file) for file in files]
    try:
        with quiet_datasets():
            # Any split name will do for files that are named themselves.
            rows = load_dataset(builder, data_files={"rows": paths}, split=f"rows{part}", **options)
            if builder == "text":
                rows = rows.rename_column("text", RAW).filter(_is_not_blank, input_columns=RAW)
    except Exception as error:  # datasets raises its own, pyarrow's and pandas' errors for a file it can't read
        cause = root_cause(error)
        if isinstance(cause, UnicodeDecodeError):
            raise cause from error
        raise ValueError(f"could not read {_names(files)}: {first_line(cause)}") from error
    if any(name.startswith("__index_level_") for name in rows.column_names):  # pandas moved the columns to the right
        raise ValueError(
            f"could not read {_names(files)}: rows have more cells than the header; quote text with commas"
        )
    return rows


def _read_json(files: tuple[Path, ...], part: str) -> Dataset:
    """Files with a list of objects, or with JSON Lines; kept as text, so that contents may be of mixed types."""
    lines = [line for file in files for line in _json_lines(file)]
    if not lines:
        return Dataset.from_dict({RAW: []})
    piece = ReadInstruction.from_spec(f"rows{part}").to_absolute({"rows": len(lines)})[0]
    return Dataset.from_dict({RAW: lines[piece.from_ : piece.to]})


def _json_lines(file: Path) -> list[str]:
    """One JSON text per row of a file that is a list of rows, one row, or JSON Lines under the wrong ending."""
    text = file.read_text(encoding="utf-8-sig")
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


def malformed_lines(files: tuple[Path, ...], most: int = 5) -> list[str]:
    """`file:line: what is wrong` of the first lines that are not JSON objects in UTF-8."""
    found: list[str] = []
    for file in files:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                problem = _line_problem(line, is_json=file.suffix in (".jsonl", ".json"))
                if problem:
                    found.append(f"{file}:{number}: {problem}")
                if len(found) == most:
                    return found
    return found


def _line_problem(line: bytes, is_json: bool) -> str:
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return f"not UTF-8 (byte {error.object[error.start]:#04x} at {error.start + 1})"
    if not is_json or not text.strip():
        return ""
    try:
        value: Any = json.loads(text)
    except json.JSONDecodeError as error:
        return f"not JSON ({error.msg} at column {error.colno})"
    return "" if isinstance(value, dict) else f"expected an object {{...}}, got {type(value).__name__}"


def root_cause(error: BaseException) -> BaseException:
    """The error that an error was raised from, all the way down."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _names(files: tuple[Path, ...]) -> str:
    return ", ".join(map(str, files))


def _is_not_blank(line: str) -> bool:
    return bool(line.strip())
