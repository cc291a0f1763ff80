"""GracefulStop: a signal or a fault ends a run with its last good step on the disk."""

import logging
import signal
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from smollit.training.state import at_step_end

log = logging.getLogger(__name__)


class RunStopped(SystemExit):
    """The run was asked to stop and has saved itself; the exit code is 128 + the signal's number, as shells have it."""


class GracefulStop(Callback):
    """On SIGTERM or Ctrl-C: finish the optimizer step, save last.ckpt, exit with 143 or 130.

    A second Ctrl-C stops at once. When training ends, or fails between two optimizer steps, last.ckpt is saved too.

    Args:
        folder: Where checkpoints are; null saves nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.signal: int | None = None
        self.inside_step = False
        self._before: dict[int, Any] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.signal = None
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._before[number] = signal.signal(number, self._receive)
            except ValueError:  # not in the main thread: signals are somebody else's
                log.debug("signals are not handled outside the main thread")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
        print(f"\n{signal.Signals(number).name}: finishing the step and saving; Ctrl-C again stops at once", flush=True)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self.stop_if_asked(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.stop_if_asked(trainer)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        # Set before the module looks at the gradients; the weights change only after that.
        self.inside_step = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if at_step_end(trainer):
            self.inside_step = False

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.save(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save the last good step, if the fault left it whole and does not leave other ranks waiting."""
        weights_are_whole = not self.inside_step or type(exception).__name__ == "NonFiniteError"
        if (
            isinstance(exception, Exception)
            and weights_are_whole
            and trainer.world_size == 1
            and trainer.training
            and trainer.global_step > 0
        ):
            self.save(trainer)

    def stop_if_asked(self, trainer: Trainer) -> None:
        """Save and leave, on all ranks together.

        Raises:
            RunStopped: If a signal came, on any rank.
        """
        asked = self.signal is not None
        if trainer.world_size > 1:
            asked = trainer.strategy.reduce_boolean_decision(asked, all=False)
        if asked:
            self.save(trainer)
            raise RunStopped(128 + (self.signal or signal.SIGTERM))

    def save(self, trainer: Trainer) -> None:
        """Write last.ckpt."""
        if self.folder is None or trainer.fast_dev_run:
            return
        path = self.folder / "last.ckpt"
        trainer.save_checkpoint(path, weights_only=False)
        log.info("saved %s at step %s; the same command goes on from there", path, trainer.global_step)
