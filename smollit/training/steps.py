"""Optimizer steps and micro-batches: the position of a run, intervals, and the one setter of Lightning's counters."""

import math
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler, Timer

from smollit.data.batching.position import TrainingBatches
from smollit.data.encoding.report import Report


@runtime_checkable
class PositionedData(Protocol):
    """A data module that knows the position of training, and keeps it in its state."""

    def training_batches(self) -> TrainingBatches | None:
        """The training batches; None without a training split."""

    def state_dict(self) -> dict[str, Any]:
        """The position."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume at a position."""


@runtime_checkable
class DescribedData(Protocol):
    """A data module that says what a run trains on: the start summary and the checks of a resume read it."""

    token_settings: ClassVar[tuple[str, ...]]
    order_settings: ClassVar[tuple[str, ...]]
    train_batch_size: int
    reports: dict[str, Report]

    @property
    def max_length(self) -> int:
        """Longest sequence in tokens."""


def at_step_end(trainer: Trainer) -> bool:
    """Whether the last finished batch ended an optimizer step."""
    done = trainer.fit_loop.batch_idx + 1
    return done % trainer.accumulate_grad_batches == 0 or done == trainer.num_training_batches or trainer.is_last_batch


def positioned_data(trainer: Trainer) -> PositionedData | None:
    """The run's data module, if it keeps its position."""
    data = data_module(trainer)
    return data if isinstance(data, PositionedData) else None


def described_data(trainer: Trainer) -> DescribedData | None:
    """The run's data module, if it says what a run trains on."""
    data = data_module(trainer)
    return data if isinstance(data, DescribedData) else None


def data_module(trainer: Trainer) -> LightningDataModule | None:
    """The run's data module, if it has one."""
    return trainer.datamodule  # type: ignore[attr-defined, no-any-return]  # Lightning declares it nowhere


def training_batches(trainer: Trainer) -> TrainingBatches | None:
    """The training batches; None for user-defined loaders."""
    data = positioned_data(trainer)
    return data.training_batches() if data else None


class Begun(NamedTuple):
    """Where this start of a run begins: optimizer steps that were made, and the epoch and its micro-batches."""

    step: int = 0
    epoch: int = 0
    batches: int = 0


def num_steps(trainer: Trainer, begun: Begun) -> int | None:
    """Optimizer steps of the whole run, without making a loader; None where only Lightning knows.

    Those that were made, and those that are left: a resumed run may have another batch size, accumulation or number of
    devices, and epochs may differ in their numbers of batches.
    """
    batches = training_batches(trainer)
    epochs = trainer.max_epochs
    if batches is None or epochs is None or epochs < 0:
        return None
    total = begun.step
    for epoch in range(begun.epoch, epochs):
        length = batches.num_batches(epoch if batches.epochs_differ else begun.epoch)
        if length is None:  # a stream
            return trainer.max_steps if trainer.max_steps != -1 else None
        left = limited(length, trainer.limit_train_batches) - (begun.batches if epoch == begun.epoch else 0)
        total += math.ceil(max(left, 0) / accumulation(trainer, epoch))
    return total if trainer.max_steps == -1 else min(total, trainer.max_steps)


def is_timed(trainer: Trainer) -> bool:
    """Whether time limits the run: `max_time`, or a Timer of the user's."""
    return any(isinstance(callback, Timer) for callback in trainer.callbacks)  # type: ignore[attr-defined]


def is_new_run(trainer: Trainer) -> bool:
    """Whether a start begins at step 0: without a checkpoint, and with a trainer that has made no step."""
    return trainer.ckpt_path is None and trainer.global_step == 0


def limited(num_batches: int, limit: int | float) -> int:
    """Micro-batches of an epoch under `limit_train_batches`: a number of them, or a fraction, as Lightning counts."""
    return min(num_batches, limit) if isinstance(limit, int) else int(num_batches * limit)


def accumulation(trainer: Trainer, epoch: int) -> int:
    """Micro-batches per optimizer step in an epoch, which a GradientAccumulationScheduler changes."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GradientAccumulationScheduler):
            return callback.get_accumulate_grad_batches(epoch)
    return trainer.accumulate_grad_batches


def refuse_fewer_steps(trainer: Trainer, begun: Begun) -> None:
    """Refuse to resume with fewer steps or epochs than are done.

    Raises:
        ValueError: If `trainer.max_steps` or `max_epochs` is lower than what the checkpoint has reached.
    """
    epochs = begun.epoch + bool(begun.batches)
    for name, asked, done, what in (
        ("max_steps", trainer.max_steps, begun.step, "step"),
        ("max_epochs", trainer.max_epochs, epochs, "epoch"),
    ):
        if asked is not None and asked != -1 and asked < done:
            raise ValueError(
                f"`trainer.{name}` is {asked}, and the checkpoint has reached {what} {done}: a resumed run can't make"
                " fewer. Set it higher, or start a new run in another `trainer.default_root_dir`"
            )


def set_counters(checkpoint: dict[str, Any], epoch: int, batches: int, total_batches: int) -> None:
    """Write into a checkpoint's loop state: `batches` of epoch `epoch` are done, and nothing is in progress.

    Lightning has no public way to move its loops to the end of an optimizer step, or to where rows that were done come
    in batches of another size. Both the saving and the restoring side come here, before Lightning reads the state.
    """
    loops = checkpoint["loops"]["fit_loop"]
    progress = loops["epoch_loop.batch_progress"]
    for name in ("ready", "started", "processed", "completed"):
        progress["current"][name] = batches
        progress["total"][name] = total_batches
    progress["is_last_batch"] = False
    # Lightning's loggers count by this; it is saved one too low when a checkpoint is written inside a batch's hooks.
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] = checkpoint["global_step"]
    validation = loops["epoch_loop.val_loop.batch_progress"]  # an interrupted one is not resumed in the middle
    for part in ("current", "total"):
        validation[part] |= dict.fromkeys(("ready", "started", "processed", "completed"), 0)
        begun = epoch + 1 if batches else epoch
        loops["epoch_progress"][part] |= {"ready": begun, "started": begun, "processed": epoch, "completed": epoch}
    checkpoint["epoch"] = epoch
