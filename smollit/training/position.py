"""Where a run stands, in optimizer steps and micro-batches; the one place that sets Lightning's loop counters."""

import math
from typing import Any, Protocol, runtime_checkable

from lightning.pytorch import Trainer

from smollit.data.batching.position import TrainingBatches


@runtime_checkable
class PositionedData(Protocol):
    """A data module that knows where training stands in it, and keeps the position in its state."""

    def training_batches(self) -> TrainingBatches | None:
        """What makes up the training batches; None without a training split."""

    def state_dict(self) -> dict[str, Any]:
        """The position."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume at a position."""


def at_step_end(trainer: Trainer) -> bool:
    """Whether the batch that was just done ended an optimizer step."""
    done = trainer.fit_loop.batch_idx + 1
    return done % trainer.accumulate_grad_batches == 0 or done == trainer.num_training_batches or trainer.is_last_batch


def positioned_data(trainer: Trainer) -> PositionedData | None:
    """The run's data module, if it keeps its position."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    return data if isinstance(data, PositionedData) else None


def training_batches(trainer: Trainer) -> TrainingBatches | None:
    """What makes up the training batches; None if the loaders are the user's own."""
    data = positioned_data(trainer)
    return data.training_batches() if data else None


def num_steps(trainer: Trainer) -> int | None:
    """Optimizer steps of the whole run, without making a loader; None where Lightning has to say.

    Epochs may differ in their numbers of batches.
    """
    batches = training_batches(trainer)
    epochs = trainer.max_epochs
    if batches is None or epochs is None or epochs < 0 or trainer.limit_train_batches != 1.0:
        return None
    lengths = [batches.num_batches(epoch) for epoch in (range(epochs) if batches.epochs_differ else range(1))]
    steps = [math.ceil(length / trainer.accumulate_grad_batches) for length in lengths if length is not None]
    if len(steps) < len(lengths):  # a stream
        return trainer.max_steps if trainer.max_steps != -1 else None
    total = sum(steps) if batches.epochs_differ else sum(steps) * max(epochs, 1)
    return total if trainer.max_steps == -1 else min(total, trainer.max_steps)


def set_counters(checkpoint: dict[str, Any], epoch: int, batches: int, total_batches: int) -> None:
    """Write into a checkpoint's loop state: `batches` of epoch `epoch` are done, and nothing is half done.

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
    validation = loops["epoch_loop.val_loop.batch_progress"]  # one that was broken off is not resumed in its middle
    for part in ("current", "total"):
        validation[part] |= dict.fromkeys(("ready", "started", "processed", "completed"), 0)
        begun = epoch + 1 if batches else epoch
        loops["epoch_progress"][part] |= {"ready": begun, "started": begun, "processed": epoch, "completed": epoch}
    checkpoint["epoch"] = epoch
