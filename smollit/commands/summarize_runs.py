"""Summarizes runs from their folders: validation metrics and sample responses, before and after training.

python -m smollit.commands.summarize_runs runs/demo/sft runs/demo/dpo
"""

import argparse
from pathlib import Path
from typing import NamedTuple

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from smollit.paths import json_lines, reading

SHOWN = ("val/loss", "val/perplexity", "val/token_accuracy", "val/rewards/accuracies", "val/rewards/margins")


class Change(NamedTuple):
    """A validation metric at the first validation of a run, which may be before the first step, and at the last."""

    name: str
    first_step: int
    first: float
    last_step: int
    last: float


def changes(run: Path) -> list[Change]:
    """First and last value of each validation metric in the run's TensorBoard events.

    Raises:
        ValueError: If the folder holds no events.
    """
    if not any(run.glob("events.out.tfevents.*")):
        raise ValueError(f"{run} holds no TensorBoard events: give the folder of a run")
    events = EventAccumulator(str(run)).Reload()
    series = {name: sorted(events.Scalars(name), key=lambda e: e.step) for name in SHOWN if name in _scalars(events)}
    return [
        Change(name, points[0].step, points[0].value, points[-1].step, points[-1].value)
        for name, points in series.items()
    ]


def sample_responses(run: Path, most: int = 5) -> list[tuple[str, str, str]]:
    """(prompt, response before, response after) of the run's sample prompts."""
    file = run / "samples.jsonl"
    if not file.is_file():
        return []
    with reading(file):
        samples = list(json_lines(file.read_text(encoding="utf-8")))
    prompts = list(dict.fromkeys(sample["prompt"] for sample in samples))[:most]
    of = {prompt: [s["policy"] for s in samples if s["prompt"] == prompt] for prompt in prompts}
    return [(prompt, of[prompt][0], of[prompt][-1]) for prompt in prompts]


def describe(run: Path) -> str:
    """The report of one run, as text."""
    lines = [f"{run}"]
    for change in changes(run):
        before = f"{change.first:9.4f} at step {change.first_step}"
        lines.append(f"  {change.name:<24} {before} -> {change.last:9.4f} at step {change.last_step}")
    for prompt, before, after in sample_responses(run):
        lines += [f"  {prompt}", f"    before: {_short(before)}", f"    after:  {_short(after)}"]
    return "\n".join(lines)


def main() -> None:
    """Print the reports of the runs that are named on the command line."""
    parser = argparse.ArgumentParser(
        description="Validation metrics and sample responses of runs, before and after training."
    )
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs")
    for run in parser.parse_args().runs:
        print(describe(run), end="\n\n")


def _scalars(events: EventAccumulator) -> list[str]:
    return events.Tags()["scalars"]


def _short(text: str, most: int = 100) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 3] + "..."


if __name__ == "__main__":
    main()
