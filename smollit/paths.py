"""Paths: whether a name is one, the home folder in one, and files that are written and read whole or not at all."""

import glob
import json
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import yaml

from smollit.errors import first_line


def cache_folder() -> Path:
    """The folder of what is made once and used again: $SMOLLIT_CACHE, else ~/.cache/smollit."""
    return Path(os.environ.get("SMOLLIT_CACHE") or "~/.cache/smollit").expanduser()


def is_path(name: str) -> bool:
    """Whether a name that does not exist on this disk is meant as a path: `runs/sft/export` and `./x`, not `org/x`."""
    return Path(name).is_absolute() or name.startswith((".", "~", "runs/")) or name.count("/") > 1


def check_folder(name: str, setting: str) -> None:
    """Refuse a model's or tokenizer's folder that does not exist.

    Raises:
        ValueError: If `name` is a path, and not a folder.
    """
    if not Path(name).is_dir() and is_path(name):
        raise ValueError(
            f"`{setting}` is the folder {name}, which does not exist"
            + ("" if Path(name).expanduser().is_absolute() else f" in {Path.cwd()}")
            + ": check the path (a DPO run starts from the folder that its SFT run exported)"
        )


def with_home(value: Any) -> Any:
    """A value whose texts that start with `~/` start with the home folder: shells see to that in plain words only."""
    if isinstance(value, str):
        return os.path.expanduser(value) if value.startswith("~/") else value
    if isinstance(value, list):
        return [with_home(item) for item in value]
    return {key: with_home(item) for key, item in value.items()} if isinstance(value, dict) else value


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file that has all of its content or is as it was before: a kill leaves no half of it.

    Args:
        path: The file; its folder is made. Of several processes that write it at once, the last one wins.
        content: Text, which is written as UTF-8, or bytes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    hidden = f".{path.name.lstrip('.')}"
    remove_unfinished(path.parent.glob(f"{glob.escape(hidden)}.*.tmp"))
    temporary = path.with_name(f"{hidden}.{socket.gethostname()}-{os.getpid()}.tmp")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(temporary, path)


def remove_unfinished(temporary: Iterable[Path]) -> None:
    """Remove, of the temporary files of `write_whole`, those of processes of this machine that are gone."""
    ours = f".{socket.gethostname()}-"
    for path in temporary:
        _, found, number = path.stem.rpartition(ours)
        if found and number.isdigit() and not psutil.pid_exists(int(number)):
            path.unlink(missing_ok=True)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Name the file whose content can't be read, as after a fault of a disk or an edit.

    Raises:
        ValueError: If the content is not what was expected.
    """
    try:
        yield
    except (ValueError, yaml.YAMLError) as error:  # those of json, pyarrow and of decoding are ValueErrors
        raise ValueError(
            f"{path} can't be read ({first_line(error).rstrip('.')}): put a whole copy in its place, or move it away"
        ) from error


def json_lines(text: str) -> Iterator[Any]:
    """The values of JSON Lines. Only a newline ends a line: `str.splitlines` also cuts at U+2028, inside of a text."""
    return (json.loads(line) for line in text.split("\n") if line.strip())


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping in a JSON or YAML file of a run or an export; empty if there is no such file.

    Raises:
        ValueError: If the file is damaged.
    """
    if not path.is_file():
        return {}
    with reading(path):
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
        if not isinstance(found, dict):
            raise ValueError("it is empty or cut" if found is None else f"expected a mapping, got {found!r:.40}")
    return found
