"""GracefulStop: saves the last good step when a signal or an error ends a run."""

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging

from smollit.modules import FineTuningModule
from smollit.modules.lost_steps import NonFiniteError, NothingTrainedError
from smollit.training.checkpoints.saving import NotSavedError, all_finite, trained_tensors
from smollit.training.steps import Begun, at_step_end, num_steps

log = logging.getLogger(__name__)


class RunStopped(SystemExit):
    """The run was stopped by a signal and has been saved; the exit code is 128 + the signal's number, as in shells."""


# Signals that stop a run; Windows has no SIGHUP, which a closing terminal sends.
SIGNALS = tuple(signal.Signals[name] for name in ("SIGTERM", "SIGINT", "SIGHUP") if name in signal.Signals.__members__)


@contextmanager
def ctrl_c_exits() -> Iterator[None]:
    """Exit with 130 at a Ctrl-C, as shells do: Lightning turns a KeyboardInterrupt into exit code 1."""
    pid = os.getpid()

    def stop(number: int, frame: FrameType | None) -> None:
        if os.getpid() == pid:  # in a forked process, Ctrl-C is for its parent
            raise RunStopped(128 + number)

    try:
        before = signal.signal(signal.SIGINT, stop)
    except ValueError:  # not in the main thread, where Python does not allow handlers
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class RefuseNothingTrained(Callback):
    """Ends a run in which no optimizer step changed a weight with an error: before anything is saved or exported; and
    one whose average of the weights would have none of the steps in it, before it starts."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        averages = [each for each in trainer.callbacks if isinstance(each, EMAWeightAveraging)]  # type: ignore[attr-defined]
        if stage != "fit" or not averages:
            return
        steps = num_steps(trainer, Begun()) or trainer.max_steps
        epochs = steps if trainer.max_epochs in (None, -1) else trainer.max_epochs
        for callback in averages:
            # A `should_update` of the user's own may depend on more than the numbers; -1 is as long as time allows.
            if steps == -1 or type(callback).should_update is not EMAWeightAveraging.should_update:
                continue
            in_steps = any(callback.should_update(step_idx=step) for step in range(steps))
            if not in_steps and not any(callback.should_update(epoch_idx=epoch) for epoch in range(epochs or 0)):
                raise ValueError(
                    f"`trainer.callbacks`: {type(callback).__name__} would average none of the {steps} steps, and leave"
                    " the weights of the start: set `update_every_n_steps` to 1 or more, and"
                    f" `update_starting_at_step` below {steps}"
                )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, FineTuningModule)
        pl_module.lost_steps.refuse_nothing_trained(trainer.global_step)


class GracefulStop(Callback):
    """On SIGTERM, Ctrl-C or SIGHUP: finish the optimizer step, save last.ckpt, exit with 143, 130 or 129.

    A second Ctrl-C stops at once. When training fails between two optimizer steps, last.ckpt is saved too.

    Args:
        folder: Folder of the checkpoints; null saves nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.signal: int | None = None
        self.inside_step = False
        self.begins_step = True  # the next micro-batch is the first of an optimizer step
        self.has_news = False  # since this start of the run: a step, or a validation
        self.ends_after_step = False  # since something asked for it in mid-window
        self.pid = 0
        self._before: dict[int, Any] = {}

    # ---- signals

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.has_news = self.ends_after_step = False

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.listen()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.inside_step, self.begins_step = False, True
        self.listen()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.leave()

    def listen(self) -> None:
        """Install the handlers: not in `on_fit_start`, after which Lightning handles SIGTERM and stops in mid-step."""
        if self._before:
            return
        self.signal, self.pid = None, os.getpid()
        for number in SIGNALS:
            if number not in (signal.SIGTERM, signal.SIGINT) and signal.getsignal(number) == signal.SIG_IGN:
                continue  # by nohup
            try:
                self._before[number] = signal.signal(number, self._receive)
            except ValueError:  # not in the main thread, where Python does not allow handlers
                log.debug("signals are not handled outside the main thread")

    def leave(self) -> None:
        """Restore the previous handlers, unless Lightning did so already."""
        for number, handler in self._before.items():
            if signal.getsignal(number) == self._receive:
                signal.signal(number, handler)
        self._before.clear()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.pid:  # a forked loader process: Ctrl-C is for its parent, the others for itself
            if number != signal.SIGINT:
                os._exit(128 + number)
            return
        if self.signal is not None and number == signal.SIGINT:
            raise RunStopped(128 + number)  # Lightning would turn a KeyboardInterrupt into exit code 1
        self.signal = number
        # os.write, since print() fails when the signal came in the middle of another print().
        text = f"\n{signal.Signals(number).name}: finishing the step and saving; Ctrl-C again stops at once\n"
        os.write(2, text.encode())

    # ---- following the run

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self.begins_step:
            self.stop_if_asked(trainer)
        self.begins_step = False

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        # Set before the module looks at the gradients; the weights change only after that.
        self.inside_step = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if at_step_end(trainer):
            self.inside_step, self.begins_step, self.has_news = False, True, True
            trainer.should_stop |= self.ends_after_step
            self.ends_after_step = False
        elif trainer.should_stop:  # by Lightning's Timer: what is left of the accumulation window would be lost
            self.ends_after_step, trainer.should_stop = True, False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.has_news |= trainer.state.fn == "fit" and not trainer.sanity_checking

    def on_validation_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.state.fn != "fit":
            self.stop_evaluation(trainer)
        elif not trainer.sanity_checking:
            self.stop_if_asked(trainer)

    def on_test_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        self.stop_evaluation(trainer)

    def on_predict_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        self.stop_evaluation(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save the last good step, if the error left it intact and does not leave other ranks waiting."""
        self.leave()
        if isinstance(exception, NothingTrainedError):
            return
        weights_are_whole = not self.inside_step or isinstance(exception, NonFiniteError)
        in_training = trainer.state.fn == "fit" and bool(trainer.optimizers) and not trainer.sanity_checking
        if isinstance(exception, NotSavedError) or not isinstance(exception, Exception) or trainer.world_size > 1:
            return
        if weights_are_whole and in_training and all_finite(trained_tensors(trainer)):
            self.save(trainer)

    # ---- leaving

    def stop_evaluation(self, trainer: Trainer) -> None:
        """End validate, test and predict at a SIGTERM: Lightning records it and continues.

        Raises:
            RunStopped: If it came.
        """
        if trainer.received_sigterm:
            raise RunStopped(128 + signal.SIGTERM)

    def stop_if_asked(self, trainer: Trainer) -> None:
        """Save and stop, on all ranks together.

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
        """Write last.ckpt, if a step was made since the run began or was resumed."""
        is_rehearsal = trainer.fast_dev_run  # type: ignore[attr-defined]
        if self.folder is None or is_rehearsal or not self.has_news:
            return
        path = self.folder / "last.ckpt"
        trainer.save_checkpoint(path, weights_only=False)
        if trainer.is_global_zero:
            log.info("the same command with `ckpt_path: last` resumes from step %s", trainer.global_step)


class SaveAtEnd(Callback):
    """Saves last.ckpt when training ends, before other callbacks replace weights: Lightning's WeightAveraging does.

    Args:
        stop: Writes last.ckpt.
    """

    def __init__(self, stop: GracefulStop) -> None:
        self.stop = stop

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.stop.save(trainer)
