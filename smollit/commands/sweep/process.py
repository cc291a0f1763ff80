"""One run of a sweep: a process of its own, which gets the signals that the sweep gets."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def fit(config: Path, folder: Path, *, to_stderr: bool) -> int:
    """Train, or resume training; return the exit code, as a shell has it: 128 + the signal for a killed process.

    Args:
        config: Settings of the run.
        folder: Its run folder.
        to_stderr: Whether standard output is for a program, and what the run prints goes to standard error.
    """
    words = ["fit", "--config", str(config), "--trainer.default_root_dir", str(folder), "--ckpt_path", "last"]
    # Its own session: Ctrl-C in the terminal reaches the run once, through this process, and lets it save.
    process = subprocess.Popen(
        [sys.executable, "-m", "smollit", *words], stdout=sys.stderr if to_stderr else None, start_new_session=True
    )
    with forwarding(process):
        code = process.wait()
    return code if code >= 0 else 128 - code


@contextmanager
def forwarding(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Pass the signals that would end this process on to another one, and wait for that."""

    def forward(number: int, frame: FrameType | None) -> None:
        process.send_signal(number)

    before = {number: signal.signal(number, forward) for number in FORWARDED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
