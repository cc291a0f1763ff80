"""ValidateEverySteps: validation counted in optimizer steps, not in micro-batches."""

import sys
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from smollit.training.position import at_step_end

NEVER = sys.maxsize  # an interval in micro-batches that is not reached


class ValidateEverySteps(Callback):
    """Validate every `every_n_steps` optimizer steps and after the last one.

    Lightning's own interval counts micro-batches, and so drifts when the last accumulation window of an epoch is
    short. There is no public way to ask for a validation: `val_check_batch` is the number that its loop looks at.
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
