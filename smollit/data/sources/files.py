"""The files of a split: found, and downloaded if they are remote."""

import glob
import hashlib
import json
import logging
import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import fsspec
from datasets.data_files import EmptyDatasetError, get_data_patterns, resolve_pattern

from smollit.errors import first_line
from smollit.paths import is_path

log = logging.getLogger(__name__)
Row = dict[str, Any]
TEXTS = {".jsonl": ".jsonl", ".ndjson": ".jsonl", ".json": ".json", ".csv": ".csv", ".tsv": ".csv"}  # ending -> kind
TABLES = {".parquet": ".parquet", ".arrow": ".arrow"}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
KINDS = TEXTS | TABLES | {end + packed: kind for end, kind in TEXTS.items() for packed in COMPRESSIONS}
READABLE = f"{', '.join(TEXTS)} files (also as {', '.join(COMPRESSIONS)}), {' and '.join(TABLES)} files"
SHARD = re.compile(r"-\d+-of-(\d+)$")
# How files begin that are something else than their name says, what they are, and what to do.
SIGNATURES = (
    (b"version https://git-lfs", "a Git LFS pointer and not the data: fetch it with `git lfs pull`"),
    (b"<!doctype html", "a web page: download the file itself"),
    (b"<html", "a web page: download the file itself"),
    (b"\xff\xfe", "UTF-16 text: convert it, as with iconv -f utf-16 -t utf-8"),
    (b"\xfe\xff", "UTF-16 text: convert it, as with iconv -f utf-16 -t utf-8"),
    (b"PK\x03\x04", "a zip archive: unpack it"),
    (b"\x1f\x8b", "a gzip archive: its name must end in .gz"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive: its name must end in .zst"),
    (b"BZh", "a bzip2 archive: its name must end in .bz2"),
    (b"PAR1", "a parquet file: its name must end in .parquet"),
)
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")  # a drive letter of Windows has one character


def ending(file: Path | str) -> str:
    """The file ending that determines how a file is read, such as `.jsonl.gz`; empty for files that can't be read."""
    name = str(file).lower()
    return max((end for end in KINDS if name.endswith(end)), key=len, default="")


def kind_of(file: Path) -> str:
    """`.jsonl`, `.json`, `.csv`, `.parquet` or `.arrow`, compressed or not."""
    return KINDS[ending(file)]


# ---- which files


def find_files(
    dataset: str, split: str, cache_dir: Path | None = None, *, subset: str | None = None
) -> tuple[Path, ...]:
    """The files of a split; none for a Hub id, or a folder in a layout that only `datasets` knows.

    A file, a glob, a URL, and a folder that `save_to_disk` wrote from one Dataset give all of their rows, whatever
    the split's name. A folder of files named after splits, or one saved from a DatasetDict, gives the split. A subset
    of a folder is the folder of that name in it, or one that its README.md lists.

    Raises:
        ValueError: If the path does not exist, an ending is unknown, or the folder has other splits only; if a subset
            of a file is asked for.
    """
    path = Path(dataset).expanduser()
    if subset is not None and (URL.match(dataset) or glob.has_magic(dataset) or path.is_file()):
        raise ValueError(f"`data.subset` names a configuration, and {dataset} is a file, which has none: remove it")
    if URL.match(dataset):
        return download(dataset, cache_dir)
    if subset is not None and path.is_dir():
        return find_files(str(path / subset), split, cache_dir) if (path / subset).is_dir() else ()
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


def check_files(files: tuple[Path, ...], split: str) -> None:
    """Reject files that can be recognized as wrong without reading them.

    Raises:
        ValueError: If a file is missing, empty, or not what its name says, or the files are of several kinds.
    """
    if len({kind_of(file) for file in files}) > 1:
        raise ValueError(f"the files of split {split!r} are of several kinds: {names_of(files)}")
    for file in files:
        if not file.is_file():
            raise ValueError(f"{file} is missing: the folder was not copied whole")
        if file.stat().st_size == 0:
            raise ValueError(f"{file} is empty: a data set needs at least one row")
        if other := _other_content(file):
            raise ValueError(f"{file} is {other}")


def _other_content(file: Path) -> str:
    """What a file is, and what to do, if it begins as a file of another kind does; else empty."""
    with file.open("rb") as content:
        start = content.read(64).lower()
    found = next((said for mark, said in SIGNATURES if start.startswith(mark.lower())), "")
    return "" if found.endswith(f" {file.suffix.lower()}") else found


def download(url: str, cache_dir: Path | None) -> tuple[Path, ...]:
    """Local copies of the file of a URL, or of all files that match it if it contains `*`; downloaded once.

    fsspec reads the URL: https:// and hf:// always, s3:// and others where their package is installed.

    Raises:
        ValueError: If a file can't be downloaded, or it is of a kind that can't be read.
    """
    if not ending(url.split("?")[0]):
        raise ValueError(f"`data.dataset` is {url}, but only {READABLE} can be read; a data set on the Hub has an id")
    folder = cache_dir / "downloads" if cache_dir else Path(tempfile.mkdtemp(prefix="smollit-"))
    try:
        system, path = fsspec.url_to_fs(url)
        paths = sorted(system.glob(path)) if "*" in path else [path]
        files = [_local_name(folder, system.unstrip_protocol(path)) for path in paths]
        for file, remote in zip(files, paths, strict=True):
            if not file.exists():
                _download_one(system, remote, file)
    except Exception as error:  # every file system raises its own types
        raise ValueError(
            f"`data.dataset` {url} can't be downloaded: {type(error).__name__}: {first_line(error).rstrip('.')}."
            " Check the address, the network and your credentials, or set `data.dataset` to a local copy"
        ) from error
    if not files:
        raise ValueError(f"`data.dataset` is {url!r}, and no file matches it: check the address")
    return tuple(files)


def _local_name(folder: Path, url: str) -> Path:
    """A path that ends as the URL does; files of the same name in different folders have different ones."""
    return folder / hashlib.sha256(url.encode()).hexdigest()[:16] / url.split("?")[0].rsplit("/", 1)[-1]


def _download_one(system: fsspec.AbstractFileSystem, remote: str, file: Path) -> None:
    """Download to a temporary name first, so that another process never sees an incomplete file."""
    log.info("downloading %s", remote)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        system.get_file(remote, str(partial))
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)


def _files_of_glob(pattern: str) -> tuple[Path, ...]:
    files = [Path(name) for name in sorted(glob.glob(pattern, recursive=True)) if Path(name).is_file()]
    if not files:
        raise ValueError(f"`data.dataset` is {pattern!r}, and no file matches it: check the path")
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
            raise _no_split(folder, split, names)
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
            by_split.setdefault(_stem(file), []).append(file)
    readme = folder / "README.md"
    has_own_layout = readme.is_file() and "\nconfigs:" in readme.read_text(encoding="utf-8", errors="replace")
    found = by_split.get(split, [])
    if by_split and not has_own_layout:
        found = _as_datasets(folder, split, list(by_split), found)
    shards = [match for file in found if (match := SHARD.search(file.name[: -len(ending(file))]))]
    if shards and len(shards) < int(shards[0][1]):
        of_all = f"{len(shards)} of the {int(shards[0][1])} files of split {split}"
        log.warning("%s has %s: the others were not copied", folder, of_all)
    return tuple(found)


def _as_datasets(folder: Path, split: str, names: list[str], found: list[Path]) -> list[Path]:
    """The files of a split by the rules of `datasets`, where they are not all named after it: `train_0`, `train/0`.

    `train_sft` is another split than `train`: here, those rules do not hold.
    """
    other = re.compile(rf"{re.escape(split)}_[^\W\d]+")
    alike = [name for name in names if name.startswith(split) and name != split and not other.fullmatch(name)]
    if found and not alike and not any((folder / place / split).is_dir() for place in (".", "data")):
        return found
    here, patterns = glob.escape(str(folder)), dict[str, list[str]]()
    with suppress(EmptyDatasetError):
        patterns = {str(name): patterns for name, patterns in get_data_patterns(here).items()}
    if found and split not in patterns:
        return found
    paths: list[Path] = []
    for pattern in patterns.get(split, []):
        with suppress(FileNotFoundError):  # each of several ways to name files has a pattern
            paths += map(Path, resolve_pattern(pattern, here))
    files = [path for path in dict.fromkeys(paths) if ending(path) and not other.fullmatch(_stem(path))]
    if found:
        files = [file for file in files if kind_of(file) == kind_of(found[0])] or found
    if not files:
        raise _no_split(folder, split, names)
    if {file.resolve() for file in found} - {file.resolve() for file in files}:
        raise ValueError(
            f"of split {split!r}, {folder} has {names_of(tuple(found))}, and datasets would read"
            f" {names_of(tuple(files)) or 'none'}: set `data.dataset` to a glob of the files that you mean"
        )
    level = logging.WARNING if len(files) > len(found) > 0 else logging.INFO
    log.log(level, "split %s of %s: %s", split, folder, names_of(tuple(files)))
    return files


def _stem(file: Path) -> str:
    """The name without its ending and the number of a shard."""
    return SHARD.sub("", file.name[: -len(ending(file))])


def _no_split(folder: Path, split: str, found: list[str]) -> ValueError:
    return ValueError(f"{folder} has no split {split!r}: its splits are {', '.join(sorted(found))}")


def names_of(files: tuple[Path, ...]) -> str:
    """`a.jsonl, b.jsonl`; of many files, the first three and their number."""
    names = ", ".join(map(str, files[:3]))
    return names if len(files) <= 3 else f"{names} and {len(files) - 3} more"
