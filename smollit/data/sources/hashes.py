"""Hashes of files' contents, remembered: a file that did not change since is not read again."""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

MEMORY = "file_hashes.json"  # in the cache folder: {path: [size, mtime, ctime, inode, hash]}
# A file that changed so short a time ago may change again within one tick of the disk's clock, with equal times.
SETTLED_NS = 2_000_000_000


def file_hashes(files: Sequence[Path], cache_dir: Path | None) -> list[str]:
    """SHA-256 of each file's content; without `cache_dir`, nothing is remembered."""
    known = _load(cache_dir / MEMORY) if cache_dir else {}
    found: dict[str, list[int | str]] = {}
    hashes = []
    for file in files:
        name, state = str(file.resolve()), _state(file)
        if known.get(name, [])[:-1] == state:
            hashes.append(str(known[name][-1]))
            continue
        hashes.append(_hash(file))
        if _is_settled(state) and _state(file) == state:  # not written to while it was read
            found[name] = [*state, hashes[-1]]
    if cache_dir and found:
        _save(cache_dir / MEMORY, found)
    return hashes


def _state(file: Path) -> list[int]:
    """What changes with a file; ctime also when a copy brings the old mtime along."""
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def _is_settled(state: list[int]) -> bool:
    return max(state[1:3]) < time.time_ns() - SETTLED_NS


def _hash(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _load(memory: Path) -> dict[str, list[int | str]]:
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
        return {name: entry for name, entry in known.items() if isinstance(entry, list) and len(entry) == 5}
    except (OSError, ValueError, AttributeError):  # none yet, or not ours: files are hashed anew
        return {}


def _save(memory: Path, found: dict[str, list[int | str]]) -> None:
    """Add entries, whole or not at all. When two processes save at once, one's entries are lost: a hash more later."""
    with suppress(OSError):  # a cache folder that can't be written to is no reason to stop
        memory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=memory.parent, prefix=f".{MEMORY}.", delete=False, encoding="utf-8"
        ) as file:
            json.dump(_load(memory) | found, file)
        os.replace(file.name, memory)
