"""One start of the run: a process, the moments at which it is killed, and how it ended."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from smollit.training.checkpoints.files import FOLDER
from smollit.training.logs.table import FILE as METRICS
from smollit.training.logs.table import read_table

POLL = 0.005  # seconds between two looks at the run folder
Moment = Callable[[], bool]


@dataclass(frozen=True)
class Drilled:
    """The run that is drilled.

    Args:
        config: Its settings, a YAML file.
        val_every_n_steps: Optimizer steps between validations.
        seconds: Duration of the unbroken run.
        start_up: Seconds of it until the first metrics.
        words: More settings of the command line.
        prefix: A command that starts the run, with a fault.
    """

    config: Path
    val_every_n_steps: int
    seconds: float = 60.0
    start_up: float = 10.0
    words: tuple[str, ...] = ()
    prefix: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Args:
        moment: The moment at which a signal was to be sent; empty for a process that was left alone.
        signal: The signal, or None if the process ended before that moment.
        code: Exit code, as a shell has it: 128 + the signal for a killed process.
        seconds: Duration.
        start_up: Seconds until the first metrics were there.
    """

    moment: str
    signal: signal.Signals | None
    code: int
    seconds: float
    start_up: float


def start(drilled: Drilled, folder: Path, log: Path) -> subprocess.Popen[bytes]:
    """Start the run, or start it again, by the same command."""
    words = ["fit", "--config", str(drilled.config), "--trainer.default_root_dir", str(folder), "--ckpt_path", "last"]
    command = [*drilled.prefix, sys.executable, "-m", "smollit", *words, *drilled.words]
    with log.open("ab") as output:
        # Its own session: the signals of this terminal are not for it, and all its processes can be killed together.
        return subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)


def run(drilled: Drilled, folder: Path, log: Path, moment: str = "", number: signal.Signals = signal.SIGKILL) -> Ended:
    """Start the run; send the signal when its moment has come; wait until it ends.

    Args:
        drilled: The run.
        folder: Run folder.
        log: File of its output.
        moment: A key of MOMENTS; empty lets it finish.
        number: The signal.
    """
    began, start_up, sent = time.monotonic(), 0.0, None
    first = last_step(folder)
    process = start(drilled, folder, log)
    has_come = MOMENTS[moment](drilled, folder) if moment else None
    while process.poll() is None:
        time.sleep(POLL)
        if not start_up and last_step(folder) > first:
            start_up = time.monotonic() - began
        if has_come is not None and sent is None and has_come():
            sent = number
            send(process, number)
    code = process.returncode if process.returncode >= 0 else 128 - process.returncode
    return Ended(moment, sent, code, time.monotonic() - began, start_up)


def finish(drilled: Drilled, folder: Path) -> Ended:
    """Start the run and let it end.

    Raises:
        ValueError: If it fails.
    """
    output = folder.with_suffix(".log")
    ended = run(drilled, folder, output)
    if ended.code != 0:
        last = output.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        raise ValueError(f"the run in {folder} ended with code {ended.code}: {' '.join(last)} (all in {output})")
    return ended


def send(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Kill the whole session, as a machine that goes down does; other signals are for the run's own process."""
    try:
        os.killpg(process.pid, number) if number == signal.SIGKILL else process.send_signal(number)
    except ProcessLookupError:  # it has just ended
        return


def last_step(folder: Path) -> int:
    """The last step whose metrics are in the run folder; 0 before the first."""
    rows = read_table(folder / METRICS)
    return int(rows[-1]["step"]) if rows else 0


# ---- moments


def in_start_up(drilled: Drilled, folder: Path) -> Moment:
    """At any time before the first step."""
    return after(random.uniform(0, drilled.start_up))


def in_a_step(drilled: Drilled, folder: Path) -> Moment:
    """A part of a step after any of the next steps."""
    return in_sequence(step_is_done(folder, random.randint(1, 3)), random.uniform(0, 1.0))


def in_a_save(drilled: Drilled, folder: Path) -> Moment:
    """While a checkpoint is written: its temporary file is there."""
    return lambda: any((folder / FOLDER).glob("*.tmp*")) or any((folder / FOLDER).glob(".*.tmp*"))


def in_validation(drilled: Drilled, folder: Path) -> Moment:
    """Shortly after the metrics of a step at which validation is due."""
    first = last_step(folder)

    def is_due() -> bool:
        step = last_step(folder)
        return step > first and step % drilled.val_every_n_steps == 0

    return in_sequence(is_due, random.uniform(0, 0.3))


def in_export(drilled: Drilled, folder: Path) -> Moment:
    """While a model is exported: its temporary folder is there."""
    return in_sequence(lambda: any(folder.glob(".export-*")), random.uniform(0, 0.3))


def at_any_time(drilled: Drilled, folder: Path) -> Moment:
    """At any time of the run."""
    return after(random.uniform(0, drilled.seconds))


MOMENTS: dict[str, Callable[[Drilled, Path], Moment]] = {
    "in start-up": in_start_up,
    "in a step": in_a_step,
    "in a save": in_a_save,
    "in validation": in_validation,
    "in export": in_export,
    "at any time": at_any_time,
}


def after(seconds: float) -> Moment:
    """So many seconds from now."""
    end = time.monotonic() + seconds
    return lambda: time.monotonic() >= end


def in_sequence(condition: Moment, seconds: float) -> Moment:
    """So many seconds after a condition holds for the first time."""
    end: list[float] = []

    def has_come() -> bool:
        if not end and condition():
            end.append(time.monotonic() + seconds)
        return bool(end) and time.monotonic() >= end[0]

    return has_come


def step_is_done(folder: Path, count: int) -> Moment:
    """`count` more steps are logged than now."""
    first = last_step(folder)
    return lambda: last_step(folder) >= first + count
