"""One run of a report: its curves, settings and counts, from the files of its folder."""

from pathlib import Path
from typing import Any, NamedTuple

from smollit.losses.settings import starts_at_ln_2
from smollit.paths import read_mapping
from smollit.training.logs.table import FILE, read_table
from smollit.verdict import Curves, Finding, verdict

ROWS = 20  # most rows of the table


class Run(NamedTuple):
    """A run, read from its folder.

    Args:
        name: Name of the folder.
        folder: The folder.
        curves: Its metrics.
        findings: What they say.
    """

    name: str
    folder: Path
    curves: Curves
    findings: list[Finding]


def read_run(name: str) -> Run:
    """A run folder, also of one that is still running.

    Raises:
        ValueError: If it is none, or nothing was logged yet.
    """
    folder = Path(name).expanduser()
    rows = read_table(folder / FILE)
    if not rows and (folder / FILE).is_file():
        raise ValueError(f"the run in {folder} has logged nothing yet")
    if not rows:
        raise ValueError(f"{folder} is no run folder, or its run has logged nothing yet: there is no {FILE}")
    settings = read_mapping(folder / "config.yaml")
    report = read_mapping(folder / "data_report.json")
    train = [part for split, part in report.items() if split.partition(":")[0] == "train"]
    kept = sum(part["kept"] for part in train)
    curves = Curves(
        rows,
        truncated=sum(part["truncated"] for part in train) / kept if kept else None,
        num_train=kept or None,
        num_val=sum(part["kept"] for split, part in report.items() if split.partition(":")[0] == "val") or None,
        model_name=str(_setting(settings, "model", "model_name")),
        dataset=str(_setting(settings, "data", "dataset")),
        starts_at_ln_2=starts_at_ln_2(settings.get("model", {}).get("init_args", {})),
    )
    return Run(folder.name, folder, curves, verdict(curves))


def table(run: Run) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table that practitioners know: losses, rewards, log-probabilities, by step."""
    names = [name for name in COLUMNS if run.curves.points(name)]
    points = {name: run.curves.points(name) for name in names}
    validated = sorted(set().union(*(set(points[name]) for name in names if name.startswith("val/"))))
    steps = validated or sorted(set().union(*map(set, points.values())))
    if len(steps) > ROWS:
        steps = sorted({steps[round(index * (len(steps) - 1) / (ROWS - 1))] for index in range(ROWS)})
    shown = [[str(step), *(cell(points[name], step) for name in names)] for step in steps]
    return ["step", *(COLUMNS[name] for name in names)], shown


COLUMNS = {
    "train/loss": "training loss",
    "val/loss": "validation loss",
    "val/perplexity": "perplexity",
    "val/token_accuracy": "token accuracy",
    "val/rewards/chosen": "rewards/chosen",
    "val/rewards/rejected": "rewards/rejected",
    "val/rewards/accuracies": "accuracies",
    "val/rewards/margins": "margins",
    "val/logps/chosen": "logps/chosen",
    "val/logps/rejected": "logps/rejected",
    "val/logits/chosen": "logits/chosen",
    "val/logits/rejected": "logits/rejected",
}


def cell(points: dict[int, float], step: int) -> str:
    """The value at a step, or the newest before it: training is logged at other steps than validation."""
    before = [known for known in points if known <= step]
    return f"{points[max(before)]:.4f}" if before else ""


def _setting(settings: dict[str, Any], section: str, name: str) -> Any:
    return settings.get(section, {}).get("init_args", {}).get(name, "")
