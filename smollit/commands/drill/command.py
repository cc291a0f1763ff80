"""The command `drill`: its arguments, and the drill."""

import json
import logging
import random
import signal
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from smollit.commands.command import Command, ConfiguredRun
from smollit.commands.drill.compare import (
    content,
    damaged_checkpoints,
    different_weights,
    first_different_step,
    left_behind,
    repeated_points,
)
from smollit.commands.drill.config import empty_folder, write_config
from smollit.commands.drill.faults import Faults
from smollit.commands.drill.process import MOMENTS, Drilled, Ended, finish, run
from smollit.commands.drill.promises import (
    AGAIN,
    CLEAN,
    CURVES,
    EXPORT,
    METRICS,
    READABLE,
    SIGNALS,
    WEIGHTS,
    Promise,
    promises,
)

log = logging.getLogger(__name__)
KILLS_PER_RUN = 5
SIGNALS_SENT = (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGINT)
EXIT_CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}


@dataclass(kw_only=True)
class DrillCommand(Command):
    """Kill runs of this config at random moments, start them again, and compare them with an unbroken run.

    The runs have few steps, in a folder `drill` of the run folder. The exit code is 1 if a promise was not kept.

    Args:
        kills: Number of kills, with SIGKILL, SIGTERM and Ctrl-C, about five in each run.
        steps: Optimizer steps of each run.
        seed: Seed of the moments and signals.
        faults: Also run with a full disk, a read-only run folder, a truncated checkpoint, and, on CPUs, with two
            processes of which one is killed.
        json: Write the table into this file.
        ckpt_path: Not used; accepted so that one config serves all commands.
    """

    kills: int = 25
    steps: int = 12
    seed: int = 0
    faults: bool = False
    json: Path | None = None
    ckpt_path: str | None = None

    def __post_init__(self) -> None:
        for name in ("kills", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}")

    def run(self, run: ConfiguredRun) -> None:
        """Drill, print the table, and exit with 1 if a promise was not kept."""
        random.seed(self.seed)
        folder = empty_folder(run.folder / "drill")
        drill = Drill(folder, write_config(folder, run.fit_settings(), self.steps))
        found = drill.all(self.kills)
        if self.faults:
            found += Faults(drill.drilled, folder, drill.whole, drill.spread).all()
        show(found, drill.ended, folder)
        if self.json is not None:
            rows = [asdict(promise) | {"kept": promise.kept} for promise in found]
            self.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
        if any(promise.broken for promise in found):
            raise SystemExit(1)


class Drill:
    """The runs of a drill.

    Args:
        folder: Folder of all runs.
        drilled: The settings of each.
    """

    def __init__(self, folder: Path, drilled: Drilled) -> None:
        self.folder = folder
        self.drilled = drilled
        self.whole = folder / "unbroken"
        self.spread = 0.0  # largest difference of a weight between two unbroken runs
        self.ended: list[Ended] = []
        self.promises: list[Promise] = []

    def all(self, kills: int) -> list[Promise]:
        """The unbroken run, then runs with `kills` kills in all."""
        log.info("drill: an unbroken run in %s", self.whole)
        first = finish(self.drilled, self.whole)
        self.drilled = replace(self.drilled, seconds=first.seconds, start_up=first.start_up or first.seconds)
        exact = self.repeat() if torch.accelerator.is_available() else "to the bit"
        self.promises = promises(exact)
        left, number = kills, 0
        while left:
            number += 1
            left -= self.broken_run(self.folder / f"broken-{number}", min(left, KILLS_PER_RUN))
        return self.promises

    def repeat(self) -> str:
        """A second unbroken run: on a GPU, sums may be in another order each time."""
        again = self.folder / "unbroken-again"
        finish(self.drilled, again)
        _, self.spread = different_weights(again, self.whole)
        step = first_different_step(again, self.whole)
        if not self.spread:
            return "to the bit"
        since = f", which differ from step {step[0]} on" if step else ""
        return f"within {self.spread:.1e}, as two unbroken runs are{since}"

    def broken_run(self, folder: Path, kills: int) -> int:
        """One run with so many kills; the number of those that came before it ended."""
        done = 0
        for moment, number in self.plan(kills):
            ended = run(self.drilled, folder, folder.with_suffix(".log"), moment, number)
            if ended.signal is None:
                break
            done += 1
            self.ended.append(ended)
            log.info("drill: %s, %s %s: exit code %s", folder.name, number.name, moment, ended.code)
            self.check_kill(folder, ended)
        finish(self.drilled, folder)
        self.check_end(folder)
        return max(done, 1)

    def plan(self, kills: int) -> Iterator[tuple[str, signal.Signals]]:
        """Moments in an order in which each has a chance, and signals."""
        names = [name for name in MOMENTS if name != "in export"]
        moments = random.sample(names, k=min(kills, len(names)))
        if kills >= len(names) and (self.whole / "export").is_dir():
            moments[-1] = "in export"
        for moment in moments:
            yield moment, random.choice(SIGNALS_SENT)

    def check_kill(self, folder: Path, ended: Ended) -> None:
        """What holds right after a kill."""
        damaged = damaged_checkpoints(folder)
        self.promises[READABLE].hold(f"{folder.name}: {damaged}" if damaged else None)
        expected = EXIT_CODES.get(ended.signal) if ended.signal else None
        if expected is not None:
            # A signal at the very end finds a run that has finished.
            wrong = ended.code not in (expected, 0)
            self.promises[SIGNALS].hold(f"{folder.name}: {ended.signal} gave {ended.code}" if wrong else None)

    def check_end(self, folder: Path) -> None:
        """What holds when a run that was killed has finished."""
        count, largest = different_weights(folder, self.whole)
        step = first_different_step(folder, self.whole)
        since = f", since step {step[0]}" if step else ""
        differs = largest > self.spread
        self.promises[WEIGHTS].hold(f"{folder.name}: {count} tensors by {largest:.1e}{since}" if differs else None)
        if not self.spread:
            self.promises[METRICS].hold(f"{folder.name}: step {step[0]}, {step[1]}" if step else None)
        twice = repeated_points(folder)
        self.promises[CURVES].hold(f"{folder.name}: {twice[:3]}" if twice else None)
        if (self.whole / "export").is_dir() and not self.spread:
            files = [content(each / "export").get("model.safetensors") for each in (folder, self.whole)]
            self.promises[EXPORT].hold(None if files[0] == files[1] else f"{folder.name}: another model.safetensors")
        before = content(folder)
        finish(self.drilled, folder)
        changed = sorted(name for name, _ in before.items() ^ content(folder).items())
        self.promises[AGAIN].hold(f"{folder.name}: {changed[:3]}" if changed else None)
        left = left_behind(folder)
        self.promises[CLEAN].hold(f"{folder.name}: {left[:3]}" if left else None)


def show(found: list[Promise], ended: list[Ended], folder: Path) -> None:
    """The table, and what was not kept."""
    console = Console()
    table = Table("promise", "tried", "kept")
    for promise in found:
        style = "red" if promise.broken else None
        table.add_row(promise.text, str(promise.tried), str(promise.kept), style=style)
    console.print(table)
    for promise in found:
        for broken in promise.broken:
            console.print(f"not kept: {promise.text}: {broken}", style="red", markup=False)
    moments = ", ".join(f"{sum(each.moment == name for each in ended)} {name}" for name in MOMENTS)
    console.print(f"{len(ended)} kills: {moments}. All runs are in {folder}", markup=False)
