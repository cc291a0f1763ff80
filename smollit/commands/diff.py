"""The command `diff`: where two runs part, and why, as far as their files say."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from smollit.commands.command import FolderCommand
from smollit.commands.drill.compare import metrics
from smollit.paths import read_mapping
from smollit.training.checkpoints.settings import as_typed
from smollit.training.logs.environment import starts

# Settings that name places, not what is computed.
PLACES = ("trainer.default_root_dir", "data.cache_dir", "ckpt_path")
REPORTED = ("rows", "kept", "truncated", "tokens", "loss_tokens")


class Difference(NamedTuple):
    """One value that differs; None where a run does not have it."""

    name: str
    first: Any
    second: Any


class FirstStep(NamedTuple):
    """The first step whose metrics differ, and those metrics."""

    step: int
    metrics: list[Difference]


@dataclass(kw_only=True)
class DiffCommand(FolderCommand):
    """Show the first step at which two runs differ, and how their settings, data, versions and devices differ.

    The exit code is 1 if they differ in any step.

    Args:
        json: Print one JSON object instead of lines.
    """

    json: bool = False

    def run(self) -> None:
        """Compare two run folders."""
        if len(self.folders) != 2:
            raise ValueError(f"`diff` compares two run folders, got {len(self.folders)}")
        first, second = map(run_folder, self.folders)
        step = first_step(first, second)
        causes = {
            "settings": list(differences(settings(first), settings(second))),
            "data": list(differences(data(first), data(second))),
            "versions and device": list(differences(environment(first), environment(second))),
        }
        if self.json:
            plain = {name: [each._asdict() for each in found] for name, found in causes.items()}
            parts = {"step": step.step, "metrics": [each._asdict() for each in step.metrics]} if step else None
            print(json.dumps({"first_different_step": parts, **plain}))
        else:
            print("\n".join(lines(step, causes)))
        if step:
            raise SystemExit(1)


def run_folder(name: str) -> Path:
    """The folder of a run.

    Raises:
        ValueError: If it is none.
    """
    folder = Path(name).expanduser()
    if not (folder / "metrics.csv").is_file():
        raise ValueError(f"{folder} is no run folder: it holds no metrics.csv, which `fit` writes")
    return folder


def first_step(first: Path, second: Path) -> FirstStep | None:
    """The first step that both runs logged and whose metrics differ; None if there is no such step.

    Raises:
        ValueError: If no step is in both.
    """
    ours, theirs = ({int(row["step"]): row for row in metrics(folder)} for folder in (first, second))
    common = sorted(ours.keys() & theirs.keys())
    if not common:
        raise ValueError(f"{first} and {second} have no step in common: they log at other intervals")
    for step in common:
        # A metric that only one run logs, at another interval, says nothing.
        found = [each for each in differences(ours[step], theirs[step]) if None not in (each.first, each.second)]
        if found:
            return FirstStep(step, [Difference(name, float(one), float(other)) for name, one, other in found])
    return None


def settings(folder: Path) -> dict[str, Any]:
    """The settings that the run began with."""
    found = as_typed(read_mapping(folder / "config.yaml"))
    return {name: value for name, value in found.items() if name not in PLACES}


def data(folder: Path) -> dict[str, Any]:
    """Counts of each split."""
    report = read_mapping(folder / "data_report.json")
    return {f"{split}.{name}": counts.get(name) for split, counts in report.items() for name in REPORTED}


def environment(folder: Path) -> dict[str, Any]:
    """Versions and device of the first start."""
    found = starts(folder)
    return {name: value for name, value in found[0].items() if name not in ("step", "config")} if found else {}


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[Difference]:
    """The entries that differ."""
    for name in [*first, *(name for name in second if name not in first)]:
        if first.get(name) != second.get(name):
            yield Difference(name, first.get(name), second.get(name))


def lines(step: FirstStep | None, causes: Mapping[str, list[Difference]]) -> Iterator[str]:
    """The result as text."""
    if step is None:
        yield "equal in every step that both have logged"
    else:
        yield f"they differ from step {step.step} on, or between it and the step that was logged before:"
        for name, first, second in step.metrics:
            relative = abs(first - second) / max(abs(first), abs(second), math.ulp(0.0))
            yield f"  {name}: {first:.8g} and {second:.8g} ({relative:.1e})"
    for name, found in causes.items():
        yield f"{name}: " + ("no difference" if not found else "")
        yield from (f"  {each.name}: {each.first} and {each.second}" for each in found)
    if step and not any(causes.values()):
        yield "The files show no cause: look at the rows, the code of your own parts, and the device's kernels."
