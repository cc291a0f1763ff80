"""What the run folder says of the run that trained the weights: settings, data, and validation curve."""

import math
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any, Literal, NamedTuple

from smollit import __version__
from smollit.modules import FineTuningModule
from smollit.paths import read_mapping
from smollit.training.logs.environment import config_of
from smollit.training.logs.table import Row, read_table

Settings = dict[str, Any]
ExportForm = Literal["model", "adapter"]
LIBRARIES = ("torch", "transformers", "lightning", "datasets", "tokenizers")
COUNTS = ("rows", "kept", "truncated", "tokens", "loss_tokens", "dropped")
TRAINER = (
    "max_epochs",
    "max_steps",
    "accumulate_grad_batches",
    "gradient_clip_val",
    "precision",
    "devices",
    "strategy",
)


class TrainedRun(NamedTuple):
    """The run that trained the weights.

    Args:
        folder: The run folder.
        method: `SFT`, `DPO`, or the name of the user's own module.
        step: Number of optimizer steps that made the weights; None if unknown.
        content: Hashes of rows, tokenizer and template, as checkpoints hold them.
    """

    folder: Path
    method: str = ""
    step: int | None = None
    content: Mapping[str, str] = {}

    def settings(self) -> Settings:
        """Settings of model, data and trainer at the start that made the weights, without folders of this machine."""
        config = read_mapping(config_of(self.folder, math.inf if self.step is None else self.step))
        if not config:
            return {}
        trainer = {name: config.get("trainer", {}).get(name) for name in TRAINER}
        kept = {name: config[name] for name in ("seed_everything", "model", "data") if name in config}
        found: Settings = without_folders(kept | {"trainer": trainer})
        return found

    def data(self) -> dict[str, Settings]:
        """Counts of each split, without examples of rows."""
        reports = read_mapping(self.folder / "data_report.json")
        return {split: {name: report.get(name) for name in COUNTS} for split, report in reports.items()}

    def curve(self) -> list[Row]:
        """The rows of metrics.csv that have a validation, up to the step of the weights."""
        rows = [row for row in read_table(self.folder / "metrics.csv") if row.get("val/loss")]
        return [row for row in rows if self.step is None or int(row["step"]) <= self.step]


def method_of(module: FineTuningModule) -> str:
    """`SFT` or `DPO`, or the name of the user's own module."""
    return type(module).__name__.removesuffix("Module")


def without_folders(value: Any) -> Any:
    """The value, with only the last part of absolute paths: where files lie is nobody else's business."""
    if isinstance(value, dict):
        return {name: without_folders(each) for name, each in value.items()}
    if isinstance(value, list):
        return [without_folders(each) for each in value]
    is_folder = isinstance(value, str) and (value.startswith("~") or Path(value).is_absolute())
    return Path(value).name if is_folder else value


def versions() -> dict[str, str]:
    """Versions of smollit, Python, and the libraries that made the weights."""
    return {"smollit": __version__, "python": python_version(), **{name: version(name) for name in LIBRARIES}}
