"""KeepBest: `trainer.keep_best` keeps the checkpoint of the best validation, whatever else is kept."""

import logging
import math
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from smollit.modules import FineTuningModule
from smollit.training.checkpoints.files import BEST, best_record
from smollit.training.checkpoints.lineage import begin, lineage_of
from smollit.training.steps import is_new_run

log = logging.getLogger(__name__)
Mode = Literal["min", "max"]


class KeepBest(Checkpoint):
    """Saves best.ckpt after each validation that is better than all before it.

    Metric, value and step are in the file itself, so that a run which is resumed, or killed after the save, compares
    with it. Lightning moves a `Checkpoint` after all other callbacks: the metrics are complete when it looks.

    Args:
        folder: Folder of best.ckpt.
        setting: A logged validation metric, such as `val/loss`; `min:` or `max:` in front says what is better where the
            metric itself does not.
    """

    def __init__(self, folder: Path, setting: str) -> None:
        mode, _, name = setting.rpartition(":")
        if mode not in ("", "min", "max") or not name:
            raise ValueError(
                f"`trainer.keep_best` takes a metric such as val/loss, or min:NAME or max:NAME, got {setting!r}"
            )
        self.path = folder / BEST
        self.metric = name
        self.mode: Mode | None = mode or None  # type: ignore[assignment]
        self.best: float | None = None
        self.record: dict[str, str | float] | None = None  # while best.ckpt is being saved

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare with an earlier best.ckpt if it belongs to the run that is resumed, and is of the same metric."""
        self.mode = self.mode or direction(pl_module, self.metric, "trainer.keep_best")
        if trainer.ckpt_path is None and not is_new_run(trainer):  # another fit of the same trainer
            return
        self.best = None
        record, lineage = best_record(self.path), lineage_of(self.path)
        resumed = begin(Path(trainer.ckpt_path), self.path.parent) if trainer.ckpt_path else None
        if not record or lineage is None or resumed is None or not resumed.includes(lineage):
            return
        if record["metric"] == self.metric:
            self.best = record["value"]
        else:
            log.warning("%s is the best by %s: the best by %s replaces it", self.path, record["metric"], self.metric)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        is_rehearsal = trainer.fast_dev_run or trainer.sanity_checking  # type: ignore[attr-defined]
        if trainer.state.fn != "fit" or is_rehearsal:
            return
        if self.metric not in trainer.callback_metrics:
            names = ", ".join(name for name in sorted(trainer.callback_metrics) if name.startswith("val"))
            raise ValueError(f"`trainer.keep_best` is {self.metric}, and validation measures {names or 'nothing'}")
        value = trainer.strategy.broadcast(float(trainer.callback_metrics[self.metric]))
        if not self._is_better(value):
            return
        self.best, self.record = value, {"metric": self.metric, "value": value}
        try:
            trainer.save_checkpoint(self.path, weights_only=False)
        finally:
            self.record = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self.record:
            checkpoint["best"] = self.record

    def _is_better(self, value: float) -> bool:
        if not math.isfinite(value):
            return False
        return self.best is None or (value > self.best if self.mode == "max" else value < self.best)


def direction(module: LightningModule, name: str, setting: str) -> Mode:
    """Whether the smallest or the largest value of a metric is the best, by the metric's class.

    Args:
        module: Has the metrics.
        name: Name of the metric.
        setting: The setting that names it, for the error.

    Raises:
        ValueError: If the module has no such metric.
    """
    known: dict[str, bool | None] = {}
    if isinstance(module, FineTuningModule):
        for stage in ("val", *module.val_stages):
            metrics = module.metrics_of(stage)
            known |= {key: metric.higher_is_better for key, metric in metrics.items(copy_state=False)}
    if known.get(name) is None:
        choices = ", ".join(sorted(key for key, better in known.items() if better is not None))
        raise ValueError(
            f"`{setting}` is {name}, of which it is not known whether less or more is better: write min:{name}"
            f" or max:{name}, or take one of {choices}"
        )
    return "max" if known[name] else "min"


def keeps_best(callback: Callback) -> bool:
    """Whether a callback keeps a best checkpoint by a metric."""
    return isinstance(callback, KeepBest) or (isinstance(callback, ModelCheckpoint) and callback.monitor is not None)
