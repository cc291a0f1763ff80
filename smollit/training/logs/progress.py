"""The progress bar of a run."""

from lightning.pytorch.callbacks import TQDMProgressBar


class ProgressBar(TQDMProgressBar):
    """Lightning's bar with a correct total; Lightning's ignores accumulation when `max_steps` ends the epoch early."""

    @property
    def total_train_batches(self) -> int | float:
        """Micro-batches of this epoch, up to the end of the epoch or of the run."""
        in_epoch = self.trainer.num_training_batches
        if self.trainer.max_epochs != -1 or self.trainer.max_steps < 1:
            return in_epoch
        progress = self.trainer.fit_loop.epoch_loop.batch_progress
        # At the start of an epoch, the counter still holds the batches of the epoch before it.
        done = 0 if progress.is_last_batch else progress.current.completed
        left = self.trainer.max_steps - self.trainer.global_step
        return min(in_epoch, done + left * self.trainer.accumulate_grad_batches)
