"""ProgressBar: how many micro-batches of the epoch are left, also when the run ends inside it."""

from lightning.pytorch.callbacks import TQDMProgressBar


class ProgressBar(TQDMProgressBar):
    """Lightning's bar; its total forgets accumulation when `max_steps` ends the epoch early."""

    @property
    def total_train_batches(self) -> int | float:
        """Micro-batches of this epoch, up to its end or that of the run."""
        in_epoch = self.trainer.num_training_batches
        if self.trainer.max_epochs != -1 or self.trainer.max_steps < 1:
            return in_epoch
        done = self.trainer.fit_loop.epoch_loop.batch_progress.current.completed
        left = self.trainer.max_steps - self.trainer.global_step
        return min(in_epoch, done + left * self.trainer.accumulate_grad_batches)
