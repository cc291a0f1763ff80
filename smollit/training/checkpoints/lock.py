"""One writer per folder: a lock file with host, process and start time; that of a dead process is taken over."""

import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import psutil

log = logging.getLogger(__name__)
CLOCK_SECONDS = 5.0  # the start of a process is computed from the clock, which moves


class Holder(NamedTuple):
    """The process that holds a lock.

    Args:
        host: Name of its machine.
        pid: Its number there.
        started: Time at which the process started: numbers are used again.
        since: Time at which it took the lock, for the reader.
        after_boot: Seconds from the start of the machine to that of the process, which do not change if the clock is
            set; null in the locks of earlier versions.
    """

    host: str
    pid: int
    started: float
    since: str
    after_boot: float | None = None

    @classmethod
    def me(cls) -> "Holder":
        """This process."""
        started, after_boot = start_of(os.getpid())
        return cls(socket.gethostname(), os.getpid(), started, time.strftime("%Y-%m-%d %H:%M:%S"), after_boot)

    def is_me(self) -> bool:
        """Whether it is this process."""
        return (self.host, self.pid) == (socket.gethostname(), os.getpid()) and not self.is_dead()

    def is_dead(self) -> bool:
        """Whether it was a process of this machine, and has ended. Of another machine nothing is known."""
        if self.host != socket.gethostname():
            return False
        try:
            started, after_boot = start_of(self.pid)
        except psutil.NoSuchProcess:
            return True
        is_same = self.after_boot is not None and abs(after_boot - self.after_boot) <= CLOCK_SECONDS
        return not is_same and abs(started - self.started) > CLOCK_SECONDS


def start_of(pid: int) -> tuple[float, float]:
    """When a process started: by the clock, and in seconds after the start of the machine."""
    started = psutil.Process(pid).create_time()
    return started, started - psutil.boot_time()


@contextmanager
def locked(path: Path, *, what: str, advice: str) -> Iterator[None]:
    """Hold the lock `path` while a block runs; a process that holds it already may take it again.

    Args:
        path: The lock file.
        what: What is locked, for the error.
        advice: What to do instead, for the error.

    Raises:
        ValueError: If another process holds it, or one of another machine did not release it.
    """
    is_ours = _take(path, what, advice)
    try:
        yield
    finally:
        if is_ours:
            path.unlink(missing_ok=True)


def _take(path: Path, what: str, advice: str) -> bool:
    """Take the lock; False if this process has it already."""
    while True:
        with suppress(FileExistsError), path.open("x", encoding="utf-8") as file:  # exclusive, on network disks too
            json.dump(Holder.me()._asdict(), file)
            return True
        holder = _holder(path)
        if holder is None:  # released, or taken over, in this moment
            continue
        if holder.is_me():
            return False
        if not holder.is_dead():
            raise ValueError(
                f"{what} is in use by process {holder.pid} on {holder.host}, since {holder.since}: {advice}. If that"
                f" process is gone, remove {path}"
            )
        _remove(path, holder)
        log.warning("%s was in use by process %s since %s, which is gone: taken over", what, holder.pid, holder.since)


def _holder(path: Path) -> Holder | None:
    """Who holds the lock; None if nobody does."""
    for _ in range(20):
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            return Holder(**{name: found[name] for name in Holder._fields if name in found})
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):  # another process is writing it
            time.sleep(0.05)
    return Holder(socket.gethostname(), 0, 0.0, "an unknown time")  # killed while it wrote


def _remove(path: Path, stale: Holder) -> None:
    """Remove the lock of a dead process; if another process was faster and holds it now, its lock stays."""
    mine = path.with_name(f"{path.name}.{os.getpid()}")
    with suppress(FileNotFoundError):
        os.replace(path, mine)
        if _holder(mine) != stale:
            with suppress(FileExistsError):
                os.link(mine, path)
        mine.unlink()
