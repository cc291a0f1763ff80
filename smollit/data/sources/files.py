"""Local files of rows: which files make up a split, their kinds, opening them, and naming their bad lines."""

import glob
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

import pyarrow as pa
from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from smollit.names import first_line, is_path

KINDS = (".jsonl", ".json", ".csv", ".parquet", ".arrow")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
ENDINGS = (*KINDS, *(kind + packed for kind in (".jsonl", ".json", ".csv") for packed in COMPRESSIONS))
READABLE = f"{', '.join(KINDS)} files (the first three also as {' or '.join(COMPRESSIONS)})"
SHARD = re.compile(r"-\d+-of-\d+$")


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


def ending(file: Path | str) -> str:
    """The ending that says how a file is read, such as `.jsonl.gz`; empty for files that can't be read."""
    return next((end for end in ENDINGS if str(file).endswith(end)), "")


def kind_of(file: Path) -> str:
    """`.jsonl`, `.json`, `.csv`, `.parquet` or `.arrow`, compressed or not."""
    return next(kind for kind in KINDS if ending(file).removesuffix(".gz").removesuffix(".zst") == kind)


# ---- which files


def find_files(dataset: str, split: str) -> tuple[Path, ...]:
    """The files of a split; none for a hub id, or a folder laid out in a way that only datasets knows.

    A file, a glob, and a folder that `save_to_disk` wrote from one Dataset are all of their rows, whatever the
    split's name. A folder of files named after splits, or one that was saved from a DatasetDict, gives the split.

    Raises:
        ValueError: If the path does not exist, an ending is unknown, or the folder has other splits only.
    """
    path = Path(dataset).expanduser()
    if path.is_file():
        if not ending(path):
            raise ValueError(f"`data.dataset` is {path}, but only {READABLE} can be read")
        return (path,)
    if path.is_dir():
        return _saved_files(path, split) or _files_of_split(path, split)
    if glob.has_magic(dataset):
        return _files_of_glob(str(path))
    if ending(path) or is_path(dataset):
        raise ValueError(f"`data.dataset` is {dataset!r}, and there is no such file or folder: check the path")
    return ()


def _files_of_glob(pattern: str) -> tuple[Path, ...]:
    files = [Path(name) for name in sorted(glob.glob(pattern, recursive=True)) if Path(name).is_file()]
    if not files:
        raise ValueError(f"`data.dataset` is {pattern!r}, and no file is matched by it: check the path")
    for file in files:
        if not ending(file):
            raise ValueError(f"`data.dataset` is {pattern!r}, which matches {file}, but only {READABLE} can be read")
    return tuple(files)


def _saved_files(folder: Path, split: str) -> tuple[Path, ...]:
    """The Arrow files, in order, of what `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote."""
    splits = folder / "dataset_dict.json"
    if splits.is_file():
        names = json.loads(splits.read_text(encoding="utf-8"))["splits"]
        if split not in names:
            raise ValueError(f"{folder} has no split {split!r}: its files are of the splits {', '.join(sorted(names))}")
        folder = folder / split
    state = folder / "state.json"
    if not (state.is_file() and (folder / "dataset_info.json").is_file()):
        return ()
    files = json.loads(state.read_text(encoding="utf-8")).get("_data_files", [])
    return tuple(folder / file["filename"] for file in files)


def _files_of_split(folder: Path, split: str) -> tuple[Path, ...]:
    by_split: dict[str, list[Path]] = {}
    for file in sorted([*folder.glob("*"), *folder.glob("data/*")]):
        if ending(file):
            by_split.setdefault(SHARD.sub("", file.name.removesuffix(ending(file))), []).append(file)
    readme = folder / "README.md"
    has_own_layout = readme.is_file() and "\nconfigs:" in readme.read_text(encoding="utf-8", errors="replace")
    if by_split and split not in by_split and not has_own_layout:
        raise ValueError(f"{folder} has no split {split!r}: its files are of the splits {', '.join(sorted(by_split))}")
    return tuple(by_split.get(split, ()))


def check_files(files: tuple[Path, ...], split: str) -> None:
    """Refuse what can be seen to be wrong without reading.

    Raises:
        ValueError: If a file is missing or empty, or the files are of several kinds.
    """
    if len({kind_of(file) for file in files}) > 1:
        raise ValueError(f"the files of split {split!r} are of several kinds: {names_of(files)}")
    for file in files:
        if not file.is_file():
            raise ValueError(f"{file} is missing: the folder was not copied whole")
        if file.stat().st_size == 0:
            raise ValueError(f"{file} is empty: a data set needs at least one row")


# ---- opening them


@contextmanager
def open_bytes(file: Path) -> Iterator[BufferedReader]:
    """The content of a file, decompressed as its ending says. (pyarrow reads .zst, which Python can from 3.14 on.)

    Raises:
        ValueError: If the archive is broken or cut short.
    """
    try:
        # BufferedReader takes anything with readinto(), of which pyarrow's files are not declared to be
        with BufferedReader(pa.input_stream(str(file), compression=COMPRESSIONS.get(file.suffix))) as content:  # type: ignore[arg-type]
            yield content
    except OSError as error:
        if file.suffix not in COMPRESSIONS:
            raise
        raise ValueError(
            f"{file} is not a whole {file.suffix} file: {first_line(error)}. Download it or compress it again"
        ) from error


def iter_lines(file: Path) -> Iterator[str]:
    """Lines of a text file without their ends; blank ones are left out.

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


def not_utf8(file: Path) -> ValueError:
    """The error for a file with bytes that are no text."""
    return ValueError("text that is not UTF-8:\n" + "\n".join(malformed_lines((file,))))


def malformed(files: tuple[Path, ...]) -> ValueError:
    """The error that names the first lines that are not JSON."""
    return ValueError("malformed JSON Lines, mend these first:\n" + "\n".join(malformed_lines(files)))


def malformed_lines(files: tuple[Path, ...], most: int = 5) -> list[str]:
    """`file:line: what is wrong` of the first lines that are not JSON objects in UTF-8."""
    found: list[str] = []
    for file in files:
        with open_bytes(file) as lines:
            for number, line in enumerate(lines, start=1):
                problem = _line_problem(line, is_json=kind_of(file) in (".jsonl", ".json"))
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
        value = json.loads(text)
    except json.JSONDecodeError as error:
        return f"not JSON ({error.msg} at column {error.colno})"
    except (ValueError, RecursionError) as error:
        return f"not JSON ({first_line(error)})"
    return "" if isinstance(value, dict) else f"expected an object {{...}}, got {type(value).__name__}"


def root_cause(error: BaseException) -> BaseException:
    """The error that an error was raised from, all the way down."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def names_of(files: tuple[Path, ...]) -> str:
    """`a.jsonl, b.jsonl`; of many files, the first three and their number."""
    names = ", ".join(map(str, files[:3]))
    return names if len(files) <= 3 else f"{names} and {len(files) - 3} more"
