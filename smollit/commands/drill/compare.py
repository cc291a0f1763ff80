"""Two run folders compared: weights, metrics, exports; and what a killed run has left behind."""

import hashlib
from pathlib import Path

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from smollit.models.checkpoint import policy_weights
from smollit.training.checkpoints.files import FOLDER, latest_checkpoint
from smollit.training.logs.table import FILE as METRICS
from smollit.training.logs.table import read_table

# Metrics of the machine and not of the training.
OF_THE_MACHINE = ("per_second", "memory/", "throughput/", "seconds", "mfu", "hp_metric")


def different_weights(folder: Path, expected: Path) -> tuple[int, float]:
    """Number of tensors of the newest checkpoints that differ, and the largest difference of a value.

    Raises:
        ValueError: If there is no checkpoint, or it can't be read.
    """
    found, wanted = (weights(each) for each in (folder, expected))
    if found.keys() != wanted.keys():
        raise ValueError(f"the checkpoints hold other tensors: {sorted(found.keys() ^ wanted.keys())[:3]}")
    differing = [name for name in wanted if not torch.equal(found[name], wanted[name])]
    largest = [(found[name].double() - wanted[name].double()).abs().max().item() for name in differing]
    return len(differing), max(largest, default=0.0)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The policy's weights in the newest checkpoint of a run folder.

    Raises:
        ValueError: If there is none.
    """
    newest = latest_checkpoint(folder / FOLDER)
    if newest is None:
        raise ValueError(f"{folder} holds no checkpoint")
    return policy_weights(newest)


def first_different_step(folder: Path, expected: Path) -> tuple[int, str] | None:
    """The first step whose metrics differ, and the first such metric; None if all are equal.

    Metrics of the machine are left out. A step that stands twice, or is missing, differs.
    """
    found, wanted = (metrics(each) for each in (folder, expected))
    for index in range(max(len(found), len(wanted))):
        ours = found[index] if index < len(found) else {}
        theirs = wanted[index] if index < len(wanted) else {}
        if ours != theirs:
            name = next(name for name in [*theirs, *ours] if ours.get(name) != theirs.get(name))
            return int(theirs.get("step") or ours["step"]), name
    return None


def metrics(folder: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv, without empty cells and metrics of the machine."""
    rows = read_table(folder / METRICS)
    return [
        {name: value for name, value in row.items() if value and not any(part in name for part in OF_THE_MACHINE)}
        for row in rows
    ]


def repeated_points(folder: Path) -> list[str]:
    """Curves of TensorBoard in which a step stands twice."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    steps = {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    return [tag for tag, found in steps.items() if len(found) != len(set(found))]


def damaged_checkpoints(folder: Path) -> list[str]:
    """Names of the checkpoints that can't be read."""
    damaged = []
    for path in sorted((folder / FOLDER).glob("*.ckpt")):
        try:
            policy_weights(path)
        except ValueError:
            damaged.append(path.name)
    return damaged


def left_behind(folder: Path) -> list[str]:
    """Temporary files and folders of a run that has ended."""
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if ".tmp" in path.name or path.name[:8] == ".export-"
    )


def content(folder: Path) -> dict[str, str]:
    """Every file of a folder with a hash of its bytes."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
