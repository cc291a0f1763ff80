"""Dashboard: TensorBoard laid out for a person: loss first, curves that belong together in one chart, texts."""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from smollit.data.encoding.report import Report
from smollit.losses.settings import LOSS
from smollit.modules import DPOModule, FineTuningModule, SFTModule
from smollit.training.logs.texts import log_texts
from smollit.training.steps import described_data, is_new_run

# TensorBoard sorts its first page by name: a group of this name stands above memory and throughput.
FIRST = {
    "train/loss": "key_metrics/loss_train",
    "val/loss": "key_metrics/loss_val",
    "val/rewards/accuracies": "key_metrics/pair_accuracy_val",
    "val/rewards/margins": "key_metrics/pair_margin_val",
    "val/token_accuracy": "key_metrics/token_accuracy_val",
}
# Charts of several curves, by group; a chart without any of its curves is left out.
CHARTS = {
    "1 loss": {"training and validation": ["train/loss", "val/loss"]},
    "2 preferences": {
        "rewards of chosen and rejected": ["train/rewards/chosen", "train/rewards/rejected"],
        "rewards in validation": ["val/rewards/chosen", "val/rewards/rejected"],
        "accuracy": ["train/rewards/accuracies", "val/rewards/accuracies"],
        "margin": ["train/rewards/margins", "val/rewards/margins"],
        "log-probabilities of chosen and rejected": ["train/logps/chosen", "train/logps/rejected"],
    },
    "2 language": {
        "token accuracy": ["train/token_accuracy", "val/token_accuracy"],
        "perplexity": ["train/perplexity", "val/perplexity"],
    },
    "3 optimizer": {"learning rate": ["train/learning_rate"], "gradient norm": ["train/gradient_norm"]},
    "4 throughput and memory": {
        "tokens per second": ["throughput/tokens_per_second", "throughput/trained_tokens_per_second"],
        "peak memory in GiB": ["memory/peak_gib"],
    },
}


class RunTensorBoard(TensorBoardLogger):
    """TensorBoard's events in the run folder itself; the metrics that matter are in a group of their own too."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, name="", version="", default_hp_metric=False)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics, and the most important ones at the top of the first page too."""
        first = {FIRST[name]: value for name, value in metrics.items() if name in FIRST}
        super().log_metrics({**metrics, **first}, step)


class Dashboard(Callback):
    """Writes, at the start of a new run, the layout of the charts, the hyper-parameters, and texts about the run."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        is_rehearsal = trainer.fast_dev_run  # type: ignore[attr-defined]
        if not is_new_run(trainer) or not trainer.is_global_zero or is_rehearsal:
            return
        assert isinstance(pl_module, FineTuningModule)
        for name, text in about(trainer).items():
            log_texts(trainer.loggers, f"about/{name}", [text], 0)
        known = {str(name) for stage in ("train", "val") for name in pl_module.metrics_of(stage)}
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_custom_scalars(layout(known))
                write_hyperparameters(logger.experiment, hyperparameters(trainer, pl_module), known)


def layout(known: set[str]) -> dict[str, dict[str, list[Any]]]:
    """TensorBoard's custom scalars, without charts of metrics that the module does not have."""
    chosen: dict[str, dict[str, list[Any]]] = {}
    for group, charts in CHARTS.items():
        for title, names in charts.items():
            is_of_module = group.startswith(("1", "2"))
            if not is_of_module or known.issuperset(names):
                chosen.setdefault(group, {})[title] = ["Multiline", [f"^{re.escape(name)}$" for name in names]]
    return chosen


def write_hyperparameters(writer: SummaryWriter, named: dict[str, str | float], known: set[str]) -> None:
    """Fill the HPARAMS page: a column for each hyper-parameter and for each metric that matters."""
    metrics = {name: 0.0 for name in FIRST if name in known}  # the names only; values are those of the curves
    for summary in hparams(named, metrics):
        assert writer.file_writer is not None
        writer.file_writer.add_summary(summary)


def hyperparameters(trainer: Trainer, module: FineTuningModule) -> dict[str, str | float]:
    """The settings by which runs are compared."""
    data = described_data(trainer)
    batch = (data.train_batch_size if data else 1) * trainer.accumulate_grad_batches * trainer.world_size
    steps = trainer.estimated_stepping_batches
    found: dict[str, str | float] = {
        "learning_rate": module.learning_rate,
        "schedule": module.rates.describe(),
        "batch_per_step": batch,
        "steps": "unknown" if math.isinf(steps) else int(steps),  # only time limits the run
        "precision": str(trainer.precision),
        "max_length": data.max_length if data else 0,
        "model": module.model_name,
    }
    if isinstance(module, DPOModule | SFTModule):
        settings = LOSS.as_settings(module.loss)
        values = {name: value for name, value in settings["init_args"].items() if isinstance(value, str | float | int)}
        found |= {
            "loss": settings["class_path"].rpartition(".")[2],
            **{f"loss.{name}": v for name, v in values.items()},
        }
    return found


def about(trainer: Trainer) -> dict[str, str]:
    """Markdown texts about a run: its settings, and what its data became."""
    config = Path(trainer.default_root_dir) / "config.yaml"
    found = {}
    if config.is_file():
        found["config"] = f"```yaml\n{config.read_text(encoding='utf-8', errors='replace')}\n```"
    data = described_data(trainer)
    if data and data.reports:
        found["data"] = report_table(data.reports)
    return found


def report_table(reports: dict[str, Report]) -> str:
    """The numbers of each split as a Markdown table."""
    columns = ("rows", "kept", "truncated", "tokens", "loss_tokens")
    lines = [f"| split | {' | '.join(columns)} | p50 / p90 / p99 / max |", "|---" * (len(columns) + 2) + "|"]
    for split, report in reports.items():
        numbers = " | ".join(f"{asdict(report)[column]:,}" for column in columns)
        lines.append(f"| {split} | {numbers} | {' / '.join(map(str, report.lengths.values()))} |")
    return "\n".join(lines)
