"""When a run validates: every n optimizer steps, and first of all where a stop left a validation out."""

import inspect
import logging
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from smollit.data.rows import RowsDataModule
from smollit.modules import FineTuningModule
from smollit.training.checkpoints.best import KeepBest
from smollit.training.checkpoints.state import RunState
from smollit.training.steps import at_step_end, data_module

log = logging.getLogger(__name__)
DEFAULTS = inspect.signature(Trainer).parameters
NEVER = sys.maxsize  # an interval in micro-batches that is never reached


class ValidateEverySteps(Callback):
    """Validate every `every_n_steps` optimizer steps and after the last one.

    Lightning's own interval counts micro-batches, and so drifts when the last accumulation window of an epoch is
    short. There is no public way to request a validation: `val_check_batch` is the number that its loop reads.
    """

    def __init__(self, every_n_steps: int) -> None:
        if every_n_steps < 1:
            raise ValueError(f"`trainer.val_every_n_steps` must be at least 1, got {every_n_steps}")
        self.every_n_steps = every_n_steps

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.val_check_batch = NEVER

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        due = at_step_end(trainer) and (step % self.every_n_steps == 0 or step == trainer.estimated_stepping_batches)
        trainer.val_check_batch = 1 if due else NEVER


class DueValidation(Callback):
    """A validation that is due when a checkpoint is saved is made first by the run that resumes from it.

    Args:
        run_state: Saves whether one is due.
    """

    def __init__(self, run_state: RunState) -> None:
        self.run_state = run_state

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        data = data_module(trainer)
        has_rows = not isinstance(data, RowsDataModule) or data.has_validation
        if stage == "fit" and not (trainer.enable_validation and has_rows):
            refuse_watching_nothing(trainer.callbacks)  # type: ignore[attr-defined]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Name the metric that a misspelt `monitor` may mean: Lightning looks for it at the first validation."""
        assert isinstance(pl_module, FineTuningModule)
        stages = ("train", "val", *pl_module.val_stages)
        known = {str(name) for stage in stages for name in pl_module.metrics_of(stage).keys(keep_base=False)}
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, EarlyStopping | ModelCheckpoint) and callback.monitor not in (None, *known):
                near = get_close_matches(str(callback.monitor), known, n=1, cutoff=0.7)
                if near:
                    name = type(callback).__name__
                    log.warning("%s watches %s: if nothing logs it, take %s", name, callback.monitor, near[0])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.run_state.validation_is_due = trainer.val_check_batch == 1 and sum(trainer.num_val_batches) > 0
        if self.run_state.validation_is_due:  # a ModelCheckpoint would name this step's weights by the metrics of the
            for name in [name for name in trainer.callback_metrics if name.startswith("val/")]:  # validation before
                del trainer.callback_metrics[name]

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.run_state.validation_is_due = True

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.run_state.validation_is_due = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate if it is due, in the way of Lightning's training loop."""
        if not self.run_state.validation_is_due:
            return
        loop = trainer.fit_loop.epoch_loop.val_loop
        loop.restarting = False
        trainer.validating = True
        loop.run()
        trainer.training = True
        self.run_state.validation_is_due, self.run_state.has_news = False, True


def refuse_watching_nothing(callbacks: Iterable[Callback]) -> None:
    """Refuse callbacks that watch a validation metric in a run without validation.

    Raises:
        ValueError: Names the callback and the metric.
    """
    for callback in callbacks:
        if isinstance(callback, KeepBest):
            watches = f"`trainer.keep_best` watches {callback.metric}"
        elif isinstance(callback, EarlyStopping | ModelCheckpoint) and (callback.monitor or "").startswith("val/"):
            watches = f"`trainer.callbacks`: {type(callback).__name__} watches {callback.monitor}"
        else:
            continue
        raise ValueError(
            f"{watches}, and there is no validation: set `data.val_split` or `data.val_sets`, and"
            " `trainer.limit_val_batches` above 0"
        )


def interval_in_batches(every_n_steps: int, options: dict[str, Any]) -> dict[str, Any]:
    """Trainer's arguments for a validation every `every_n_steps` optimizer steps.

    Lightning's EarlyStopping and ModelCheckpoint read them: their defaults mean once per epoch.

    Raises:
        ValueError: If the interval is given in micro-batches too.
    """
    for name in ("val_check_interval", "check_val_every_n_epoch"):
        if options.get(name) is not None and options[name] != DEFAULTS[name].default:
            raise ValueError(f"`trainer.{name}` has no effect with `val_every_n_steps`: set only one of them")
    batches = every_n_steps * (options.get("accumulate_grad_batches") or 1)
    return {"val_check_interval": batches, "check_val_every_n_epoch": None}
