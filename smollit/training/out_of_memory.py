"""OutOfMemory: when memory runs out, one message on what the batch was and which settings to change."""

import logging
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from smollit.batch import Batch
from smollit.commands.estimate.advice import evaluation_advice, training_advice
from smollit.commands.estimate.device import GIB, peak_bytes

log = logging.getLogger(__name__)
# The CPU's allocator has no exception of its own.
MESSAGES = ("not enough memory", "DefaultCPUAllocator", "out of memory")


class OutOfMemory(Callback):
    """Explains an error of memory; the error itself goes on."""

    def __init__(self) -> None:
        self.stage = "training"
        self.batch = ""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.note("training", batch)

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, *_: int) -> None:
        self.note("validation", batch)

    def on_test_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, *_: int) -> None:
        self.note("test", batch)

    def on_predict_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, *_: int) -> None:
        self.note("prediction", batch)

    def note(self, stage: str, batch: Any) -> None:
        """Keep the batch's size in words: the batch itself must be free to go."""
        self.stage, self.batch = stage, describe(batch) if isinstance(batch, Batch) else ""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if is_out_of_memory(exception):
            log.error("%s", self.message(trainer, pl_module))

    def message(self, trainer: Any, module: LightningModule) -> str:
        """What was going on, and what to change."""
        advise = training_advice if self.stage == "training" else evaluation_advice
        device = trainer.strategy.root_device
        where = (
            f"in {self.stage}, at a batch of {self.batch}" if self.batch else f"before the first batch of {self.stage}"
        )
        advice = advise(trainer, module, trainer.datamodule)
        lines = [f"  {number}. {entry}" for number, entry in enumerate(advice, 1)]
        return "\n".join(
            [
                f"out of memory on {device} {where}; at most {peak_bytes(device) / GIB:.1f} GiB were held."
                " What needs less, in the order to try:",
                *lines,
                "`python -m smollit estimate` with the same settings says what a run will need",
            ]
        )


def describe(batch: Batch) -> str:
    """Rows, positions and the longest row."""
    longest = max((sum(document.length for document in row) for row in batch.layout), default=0)
    rows, width = batch.input_ids.shape
    return f"{rows:,} rows x {width:,} positions ({batch.num_tokens:,} tokens, longest row {longest:,})"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is of memory, on any device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in MESSAGES)
