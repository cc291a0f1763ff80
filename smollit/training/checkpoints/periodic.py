"""PeriodicCheckpoint: a file every n optimizer steps, of which the newest are kept."""

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from smollit.training.checkpoints.files import newest_first
from smollit.training.steps import at_step_end


class PeriodicCheckpoint(Checkpoint):
    """Saves step-NNNNNNN.ckpt every `every_n_steps` optimizer steps, and then removes the oldest beyond `keep`.

    The oldest are determined from the folder, so that this works across resumes. Lightning moves a `Checkpoint` after
    all other callbacks: they have seen the step when it is saved.

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
        trainer.save_checkpoint(self.folder / f"step-{step:07d}.ckpt", weights_only=False)
        # The new file is complete before an old one is removed.
        if trainer.is_global_zero:
            for path in newest_first(self.folder, "step-*.ckpt")[self.keep :]:
                trainer.strategy.remove_checkpoint(path)
