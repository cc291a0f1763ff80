"""Where rows come from: a hub id, a local folder laid out as on the hub, or local files."""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetNotFoundError

from smollit.data.encode import RAW

BUILDERS = {".jsonl": "text", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
SPLIT = re.compile(r"^(?P<name>[\w.\-]+)(?P<slice>\[[^\]]*\])?$")


@dataclass(frozen=True)
class Source:
    """Rows of one split.

    Args:
        rows: The data set, with the published columns; a JSON Lines file has the one column `RAW`.
        fingerprint: Hash of what the rows are: files' contents, or the hub's own fingerprint.
        files: Local files that the rows come from; empty for a hub id.
    """

    rows: Dataset
    fingerprint: str
    files: tuple[Path, ...]


def load_source(dataset: str, split: str) -> Source:
    """Load one split, such as `train_sft` or `train_sft[:5%]`.

    Raises:
        ValueError: If the folder, file, split or hub id can't be found, or a file is empty or not to be read.
    """
    match = SPLIT.match(split)
    if match is None:
        raise ValueError(f"a split must look like train_sft or train_sft[:5%], got {split!r}")
    name, part = match["name"], match["slice"] or ""
    files = find_files(dataset, name)
    if files:
        return load_files(files, name, part)
    try:
        rows = load_dataset(dataset, split=split)
    except (OSError, ValueError, DatasetNotFoundError) as error:
        raise ValueError(_why_not(dataset, split, error)) from error
    return Source(rows, rows._fingerprint, ())


def find_files(dataset: str, split: str) -> tuple[Path, ...]:
    """The files of a split: the file itself, or the folder's `<split>*` files; none for a hub id.

    Raises:
        ValueError: If the path does not exist, or its ending is unknown.
    """
    path = Path(dataset)
    if path.is_file():
        if path.suffix not in BUILDERS:
            raise ValueError(f"`data.dataset` is {path}, but only {', '.join(BUILDERS)} files can be read")
        return (path,)
    if path.is_dir():
        found = [
            file
            for folder in (path, path / "data")
            for file in sorted(folder.glob(f"{split}*"))
            if file.suffix in BUILDERS and re.fullmatch(rf"{re.escape(split)}(-\d+-of-\d+)?", file.stem)
        ]
        return tuple(found)
    if path.is_absolute() or dataset.startswith(".") or path.suffix in BUILDERS or dataset.count("/") > 1:
        raise ValueError(f"`data.dataset` is {dataset!r}, and there is no such file or folder: check the path")
    return ()


def load_files(files: tuple[Path, ...], split: str, part: str) -> Source:
    """Rows of local files of one kind."""
    suffixes = {file.suffix for file in files}
    if len(suffixes) > 1:
        raise ValueError(f"the files of split {split!r} are of several kinds: {', '.join(map(str, files))}")
    for file in files:
        if file.stat().st_size == 0:
            raise ValueError(f"{file} is empty: a data set needs at least one row")
    builder = BUILDERS[suffixes.pop()]
    # Any split name will do for a file that is named itself; datasets wants a word without dots.
    label = re.sub(r"\W", "_", split)
    try:
        rows = load_dataset(builder, data_files={label: [str(file) for file in files]}, split=label + part)
    except Exception as error:  # datasets raises its own, pyarrow's and pandas' errors for a file it can't read
        raise ValueError(f"could not read {', '.join(map(str, files))}: {_root_cause(error)}") from error
    if builder == "text":
        rows = rows.rename_column("text", RAW).filter(_is_not_blank, input_columns=RAW)
    if len(rows) == 0:
        raise ValueError(f"split {split}{part} of {', '.join(map(str, files))} has no rows")
    return Source(rows, _fingerprint(files, part), files)


def malformed_lines(files: tuple[Path, ...], most: int = 5) -> list[str]:
    """`file:line: what is wrong` of the first lines that are not JSON objects."""
    found: list[str] = []
    for file in files:
        with file.open(encoding="utf-8", errors="replace") as lines:
            for number, line in enumerate(lines, start=1):
                problem = _json_problem(line)
                if problem:
                    found.append(f"{file}:{number}: {problem}")
                if len(found) == most:
                    return found
    return found


def _json_problem(line: str) -> str:
    if not line.strip():
        return ""
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        return f"not JSON ({error.msg} at column {error.colno})"
    return "" if isinstance(value, dict) else f"expected an object {{...}}, got {type(value).__name__}"


def _is_not_blank(line: str) -> bool:
    return bool(line.strip())


def _fingerprint(files: tuple[Path, ...], part: str) -> str:
    digest = hashlib.sha256(part.encode())
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _why_not(dataset: str, split: str, error: Exception) -> str:
    if "split" in str(error).lower():
        return f"`{dataset}` has no split {split!r}: {_root_cause(error)}"
    if Path(dataset).is_dir():
        return f"the folder {dataset} holds no files of split {split!r}, and datasets can't read it: {error}"
    return (
        f"could not load the data set `{dataset}`: it is not a local file or folder, and the hub did not give it"
        f" ({_root_cause(error)}). Check the name and the network, or give a local folder"
    )
