"""Where rows come from: a hub id, a local folder laid out as on the hub, or local files."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset, load_dataset

from smollit.data.encode import RAW, decode_line
from smollit.data.files import find_files, quiet_datasets, read_files, root_cause
from smollit.data.records import BadRow
from smollit.names import first_line

SPLIT = re.compile(r"^(?P<name>[\w.\-]+)(?P<slice>\[-?\d*%?:-?\d*%?\])?$")


@dataclass(frozen=True)
class Source:
    """Rows of one split.

    Args:
        rows: The data set, with the published columns; a JSON or JSON Lines file has the one column `RAW`.
        fingerprint: Hash of what the rows are: files' contents, or the hub's own fingerprint.
        files: Local files that the rows come from; empty for a hub id.
    """

    rows: Dataset
    fingerprint: str
    files: tuple[Path, ...]

    def columns(self) -> list[str]:
        """Names of the columns; of JSON, the keys of the first rows."""
        if RAW not in self.rows.column_names:
            return self.rows.column_names
        return sorted({name for line in self.rows[:100][RAW] for name in _keys(line)})


def load_source(dataset: str, split: str) -> Source:
    """Load one split, such as `train_sft` or `train_sft[:5%]`.

    Raises:
        ValueError: If the folder, file, split or hub id can't be found, or a file is empty or not to be read.
    """
    match = SPLIT.match(split)
    if match is None:
        raise ValueError(f"a split must look like train_sft, train_sft[:5%] or train_sft[100:200], got {split!r}")
    name, part = match["name"], match["slice"] or ""
    files = find_files(dataset, name)
    if files:
        return Source(read_files(files, name, part), fingerprint(files, part), files)
    try:
        with quiet_datasets():
            rows = load_dataset(dataset, split=split)
    except Exception as error:  # of many types: datasets', the hub's, the network's
        raise ValueError(_why_not(dataset, split, error)) from error
    return Source(rows, rows._fingerprint, ())


def fingerprint(files: tuple[Path, ...], part: str) -> str:
    """Hash of the files' contents and the slice that is taken of them."""
    digest = hashlib.sha256(part.encode())
    for path in files:
        with path.open("rb") as file:
            digest.update(path.suffix.encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _keys(line: str) -> list[str]:
    try:
        return list(decode_line(line))
    except BadRow:
        return []  # malformed lines are named, all at once, when the rows are encoded


def _why_not(dataset: str, split: str, error: Exception) -> str:
    cause = first_line(root_cause(error))
    if "Unknown split" in str(error) or "no data" in str(error):
        return f"`{dataset}` has no split {split!r}: {cause}"
    if Path(dataset).is_dir():
        return f"the folder {dataset} holds no files of split {split!r}, and datasets can't read it: {cause}"
    return (
        f"could not load the data set `{dataset}`: it is not a local file or folder, and the hub did not give it"
        f" ({first_line(error)}). Check the name and the network, or set `data.dataset` to a local folder or file"
    )
