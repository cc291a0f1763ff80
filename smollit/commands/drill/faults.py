"""Faults of the file system, and lost processes: each ends the run with a sentence, and the same command resumes it."""

import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch

from smollit.commands.drill.compare import content, damaged_checkpoints, different_weights, first_different_step
from smollit.commands.drill.process import POLL, Drilled, finish, run, start, step_is_done
from smollit.commands.drill.promises import Promise
from smollit.training.checkpoints.files import FOLDER
from smollit.training.checkpoints.lineage import checkpoints, lineage_of
from smollit.training.checkpoints.saving import remove

LONGEST_END = 120.0  # seconds in which all processes of a run end when one is gone
RANKS = ("--trainer.devices", "2", "--trainer.strategy", "ddp")


@dataclass(frozen=True)
class Faults:
    """Runs of a drill that meet a fault.

    Args:
        drilled: The run.
        folder: Folder of all runs of the drill.
        whole: The unbroken run.
        spread: Largest difference of a weight between two unbroken runs.
    """

    drilled: Drilled
    folder: Path
    whole: Path
    spread: float

    def all(self) -> list[Promise]:
        """Each fault once; two ranks are tried on CPUs only."""
        full = Promise("A full disk ends the run with a sentence, earlier checkpoints are whole, and it resumes")
        read_only = Promise("A run folder that is read-only is refused with a sentence, and it resumes")
        truncated = Promise("A truncated checkpoint is named, as is a whole one, and the run resumes from that")
        lost = Promise("A killed rank ends all ranks with a sentence, and the same command resumes")
        full.hold(self.full_disk())
        read_only.hold(self.read_only_folder())
        truncated.hold(self.truncated_checkpoint())
        if not torch.accelerator.is_available():
            ranks = self.of_two_ranks()
            lost.hold(ranks.lost_rank("two-ranks-first", first=True))
            lost.hold(ranks.lost_rank("two-ranks-second", first=False))
        return [promise for promise in (full, read_only, truncated, lost) if promise.tried]

    # ---- the file system

    def full_disk(self) -> str | None:
        """The largest file that a process may write is smaller than a checkpoint: it is refused as by a full disk."""
        folder = self.unfinished("full-disk")
        size = largest_file(self.whole / FOLDER).stat().st_size
        limit = ("sh", "-c", f'ulimit -f {size // 2048}; exec "$@"', "sh")  # in units of 512 or of 1024 bytes
        found = self.refused(folder, limit, "could not be written")
        damaged = damaged_checkpoints(folder)
        return found or (f"damaged: {damaged}" if damaged else None) or self.resumed(folder)

    def read_only_folder(self) -> str | None:
        """No right to write into the folders of the run: nothing is changed."""
        folder = self.unfinished("read-only")
        before = content(folder)
        # A root user may write everywhere, unless this right is taken from the process.
        prefix = ("setpriv", "--bounding-set", "-dac_override") if os.geteuid() == 0 else ()
        with read_only(folder):
            found = self.refused(folder, prefix, "trainer.default_root_dir")
        changed = sorted(name for name, _ in before.items() ^ content(folder).items())
        return found or (f"changed: {changed[:3]}" if changed else None) or self.resumed(folder)

    def truncated_checkpoint(self) -> str | None:
        """The newest checkpoints lose their second half; the same command resumes when they are removed."""
        folder = self.folder / "truncated"
        shutil.copytree(self.whole, folder)
        newest = checkpoints(folder / FOLDER)[0]
        damaged = [path for path in checkpoints(folder / FOLDER) if step_of(path) == step_of(newest)]
        for path in damaged:
            file = largest_file(path)
            os.truncate(file, file.stat().st_size // 2)
        found = self.refused(folder, (), newest.name)
        if len(damaged) < len(checkpoints(folder / FOLDER)):
            found = found or self.sentence(folder, "The newest good one is")
        for path in damaged:
            remove(path)
        return found or self.resumed(folder)

    # ---- ranks

    def of_two_ranks(self) -> "Faults":
        """The same with two processes, and an unbroken run of theirs."""
        ranks = replace(self, drilled=replace(self.drilled, words=RANKS), whole=self.folder / "two-ranks")
        finish(ranks.drilled, ranks.whole)
        return ranks

    def lost_rank(self, name: str, *, first: bool) -> str | None:
        """One of two processes is killed between steps."""
        folder = self.folder / name
        process = start(self.drilled, folder, self.log(folder))
        has_come = step_is_done(folder, 3)
        while process.poll() is None and not has_come():
            time.sleep(POLL)
        if process.poll() is not None:
            return f"the run ended before its third step, see {self.log(folder)}"
        others = [child for child in psutil.Process(process.pid).children() if "fit" in child.cmdline()]
        (process if first else others[0]).send_signal(signal.SIGKILL)
        ends = time.monotonic() + LONGEST_END
        while process.poll() is None or any(map(is_alive, others)):
            if time.monotonic() > ends:
                os.killpg(process.pid, signal.SIGKILL)
                return f"processes were alive after {LONGEST_END:.0f} seconds"
            time.sleep(POLL)
        return self.sentence(folder, "another process of this run has ended") or self.resumed(folder)

    # ---- what they share

    def unfinished(self, name: str) -> Path:
        """A copy of the unbroken run as it was when its oldest checkpoint had been saved: with later metrics, without
        later checkpoints."""
        folder = self.folder / name
        shutil.copytree(self.whole, folder, ignore=shutil.ignore_patterns("export"))
        *later, oldest = checkpoints(folder / FOLDER)
        for path in later:
            if step_of(path) > step_of(oldest):
                remove(path)
        return folder

    def refused(self, folder: Path, prefix: tuple[str, ...], words: str) -> str | None:
        """Start the run with a fault: what is wrong if it does not end with an error that has these words."""
        ended = run(replace(self.drilled, prefix=prefix), folder, self.log(folder))
        return self.sentence(folder, words) or (None if ended.code in (1, 2) else f"exit code {ended.code}")

    def sentence(self, folder: Path, words: str) -> str | None:
        """What is wrong if the output has a traceback, or no sentence with these words."""
        text = self.log(folder).read_text(encoding="utf-8", errors="replace")
        if "Traceback" in text:
            return f"a traceback in {self.log(folder)}"
        said = [line for line in text.splitlines() if line.startswith("smollit: ")]
        return None if any(words in line for line in said) else f"`{words}` is not said in {self.log(folder)}: {said}"

    def resumed(self, folder: Path) -> str | None:
        """Run the same command without the fault: what differs from the unbroken run."""
        ended = run(self.drilled, folder, self.log(folder))
        if ended.code:
            return f"the same command ended with code {ended.code}, see {self.log(folder)}"
        count, largest = different_weights(folder, self.whole)
        step = None if self.spread else first_different_step(folder, self.whole)
        differs = f"{count} tensors differ by {largest:.1e}" if largest > self.spread else None
        return differs or (f"step {step[0]}, {step[1]} differ" if step else None)

    def log(self, folder: Path) -> Path:
        """The file of a run's output."""
        return folder.with_suffix(".log")


def step_of(path: Path) -> float:
    """The optimizer step of a checkpoint."""
    lineage = lineage_of(path)
    return lineage.step if lineage else -1.0


def largest_file(path: Path) -> Path:
    """The file, or the largest of a folder."""
    return max((file for file in (path, *path.rglob("*")) if file.is_file()), key=lambda file: file.stat().st_size)


def is_alive(process: psutil.Process) -> bool:
    """Whether a process has not ended; one that nobody has waited for has."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Nothing can be written into the folder and the folders in it."""
    folders = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    modes = [path.stat().st_mode for path in folders]
    for path in folders:
        path.chmod(0o500)
    try:
        yield
    finally:
        for path, mode in zip(folders, modes, strict=True):
            path.chmod(mode)
