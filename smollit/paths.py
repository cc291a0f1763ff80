"""Paths: whether a name is one, the home folder in one, and files that are written whole or not at all."""

import glob
import os
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil


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
            f"`{setting}` is the folder {name}, which does not exist: check the path"
            " (a DPO run starts from the folder that its SFT run exported)"
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
