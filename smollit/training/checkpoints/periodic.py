"""PeriodicCheckpoint: a file every n optimizer steps, of which the newest are kept."""

import re
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from smollit.training.checkpoints.best import KeepBest
from smollit.training.checkpoints.lineage import checkpoints
from smollit.training.steps import at_step_end

OWN_NAME = re.compile(r"step-\d{7,}\.ckpt")


class PeriodicCheckpoint(Checkpoint):
    """Saves step-NNNNNNN.ckpt every `every_n_steps` optimizer steps, and then removes the oldest beyond `keep`.

    The oldest are determined from what is in the files, so that this works across resumes and copies. Files under
    other names are the user's. Lightning moves a `Checkpoint` after all other callbacks: they have seen the step when
    it is saved.

    Args:
        folder: Folder of the files.
        every_n_steps: Optimizer steps between two files.
        keep: Number of files to keep.
    """

    def __init__(self, folder: Path, every_n_steps: int, keep: int) -> None:
        for name, value in (("checkpoint_every_n_steps", every_n_steps), ("keep_checkpoints", keep)):
            if value < 1:
                raise ValueError(f"`trainer.{name}` must be at least 1, got {value}")
        self.folder = folder
        self.every_n_steps = every_n_steps
        self.keep = keep

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        is_rehearsal = trainer.fast_dev_run  # type: ignore[attr-defined]
        if not at_step_end(trainer) or step % self.every_n_steps or is_rehearsal:
            return
        path = self.folder / f"step-{step:07d}.ckpt"
        trainer.save_checkpoint(path, weights_only=False)
        # The new file is complete before an old one is removed.
        if trainer.is_global_zero:
            others = [old for old in checkpoints(self.folder) if OWN_NAME.fullmatch(old.name) and old != path]
            for old in others[self.keep - 1 :]:
                trainer.strategy.remove_checkpoint(old)


def savers(folder: Path, *, every_n_steps: int | None, keep: int, best: str | None) -> list[Callback]:
    """The callbacks that `checkpoint_every_n_steps`, `keep_checkpoints` and `keep_best` ask for."""
    found: list[Callback] = [KeepBest(folder, best)] if best is not None else []
    return found if every_n_steps is None else [*found, PeriodicCheckpoint(folder, every_n_steps, keep)]
