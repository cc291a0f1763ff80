"""Hashes: of the contents of files, remembered, so that an unchanged file is not read again; of numbers, as seeds."""

import hashlib
import json
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch

from smollit.paths import write_whole

HASHES = "file_hashes.json"  # in the cache folder: {path: [size, mtime, ctime, inode, hash]}
# A file that changed so recently may change again within one tick of the disk's clock, with equal times.
SETTLED_NS = 2_000_000_000


def file_hashes(files: Sequence[Path], cache_dir: Path | None) -> list[str]:
    """SHA-256 of each file's content; without `cache_dir`, nothing is remembered."""
    known = _remembered(cache_dir / HASHES) if cache_dir else {}
    found: dict[str, list[int | str]] = {}
    hashes = []
    for file in files:
        name, state = str(file.resolve()), _state(file)
        if known.get(name, [])[:-1] == state:
            hashes.append(str(known[name][-1]))
            continue
        with file.open("rb") as content:
            hashes.append(hashlib.file_digest(content, "sha256").hexdigest())
        is_settled = max(state[1:3]) < time.time_ns() - SETTLED_NS
        if is_settled and _state(file) == state:  # not written to while it was read
            found[name] = [*state, hashes[-1]]
    if cache_dir and found:
        _remember(cache_dir / HASHES, found)
    return hashes


def _state(file: Path) -> list[int]:
    stat = file.stat()  # ctime changes also when a copy keeps the old mtime
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def _remembered(memory: Path) -> dict[str, list[int | str]]:
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
        return {name: entry for name, entry in known.items() if isinstance(entry, list) and len(entry) == 5}
    except (OSError, ValueError, AttributeError):  # none yet, or not ours: files are hashed again
        return {}


def _remember(memory: Path, found: dict[str, list[int | str]]) -> None:
    """Add entries atomically. When two processes save at once, some entries are lost, and hashed again later."""
    with suppress(OSError):  # a cache folder that can't be written to is no reason to stop
        write_whole(memory, json.dumps(_remembered(memory) | found))


def seeded(*numbers: int) -> torch.Generator:
    """A generator that depends on these numbers alone, not on the global random state."""
    digest = hashlib.blake2b(" ".join(map(str, numbers)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest) >> 1)
