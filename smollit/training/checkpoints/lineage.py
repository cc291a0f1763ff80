"""The order of the checkpoints of a folder: by branch and optimizer step, from what is in them, not by file time."""

import math
import re
import time
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from smollit.models.checkpoint import read

RUN_STATE = "run_state"  # what RunState saves in a checkpoint
STEP = re.compile(r"step[-=_]?(\d+)")


class Lineage(NamedTuple):
    """Where a checkpoint belongs; checkpoints of smollit before 0.3 have 0 for all but the step.

    Args:
        branch: Time at which a run began here: anew, or from a checkpoint that was not the newest of the folder.
        step: Optimizer steps of the run.
        saved: Time of the save.
        run: Time at which the run began at step 0.
    """

    branch: float = 0.0
    step: float = 0.0
    saved: float = 0.0
    run: float = 0.0

    def includes(self, other: "Lineage") -> bool:
        """Whether the other checkpoint was saved on the way to this one, or later on the same branch."""
        return self.run == other.run and (self.branch == other.branch or other.step <= self.step)

    def now(self) -> dict[str, float]:
        """What a checkpoint that is saved now holds of it."""
        return {"branch": self.branch, "saved": time.time(), "run": self.run}


def checkpoints(folder: Path, pattern: str = "*.ckpt") -> list[Path]:
    """Checkpoints of a folder, the newest first; unfinished ones, whose names begin with a dot, do not count.

    One that can't be read has the step that its name gives: `last` is the newest then.
    """
    # `exists` leaves out links whose file is gone.
    found = [path for path in folder.glob(pattern) if not path.name.startswith(".") and path.exists()]
    known = {path: lineage_of(path) for path in found}
    newest_branch = max((lineage.branch for lineage in known.values() if lineage), default=0.0)
    return sorted(found, key=lambda path: known[path] or Lineage(newest_branch, _named_step(path)), reverse=True)


def lineage_of(path: Path) -> Lineage | None:
    """Where a checkpoint belongs; None if it can't be read."""
    try:
        state = (path / "meta.pt" if path.is_dir() else path).stat()
    except OSError:
        return None
    return _read_lineage(path, state.st_size, state.st_mtime_ns, state.st_ino)


@lru_cache(maxsize=256)
def _read_lineage(path: Path, *state: int) -> Lineage | None:
    """Read it once, as long as the file does not change."""
    try:
        checkpoint = read(path)
        saved = checkpoint.get(RUN_STATE, {}).get("lineage", {})
        return Lineage(**saved, step=checkpoint.get("global_step", 0))
    except Exception:  # of a dozen types: the file is truncated or of another kind
        return None


def _named_step(path: Path) -> float:
    match = STEP.search(path.name)
    if match:
        return float(match[1])
    return math.inf if path.name.startswith("last") else -1.0


def begin(path: Path | None, folder: Path) -> Lineage:
    """The lineage of a start: that of the checkpoint which it resumes from, or a new branch of the folder.

    Args:
        path: The checkpoint to resume from; None for a new run.
        folder: The checkpoints of the run.
    """
    present = checkpoints(folder)
    known = [lineage for lineage in map(lineage_of, present) if lineage]
    # A clock that was ahead once must not put the new run before the old one.
    now = max([time.time(), *(lineage.branch + 1 for lineage in known)])
    if path is None:
        return Lineage(branch=now, run=now)
    resumed = lineage_of(path) or Lineage()
    is_newest = not known or resumed[:2] >= max(known)[:2]
    return resumed if is_newest else resumed._replace(branch=now)
