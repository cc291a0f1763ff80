"""OutOfMemory: settings that need less memory, for a run that ran out of it and for `estimate`."""

import logging
from collections.abc import Iterator
from typing import Any, NamedTuple

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer

from smollit.batch import Batch
from smollit.data import ChatDataModule
from smollit.modules import DPOModule, FineTuningModule
from smollit.training.memory.device import GIB, is_out_of_memory, is_sharded, peak_bytes
from smollit.training.steps import data_module

log = logging.getLogger(__name__)
SMALL_CHUNK = 256  # a smaller `model.chunk_size` saves little and is slow


class Advice(NamedTuple):
    """One setting to change.

    Args:
        setting: Name on the command line.
        now: Its current value.
        better: A value that needs less memory.
        why: Its effect and its cost.
    """

    setting: str
    now: str
    better: str
    why: str

    def __str__(self) -> str:
        return f"{self.setting}: {self.now} -> {self.better} ({self.why})"


class OutOfMemory(Callback):
    """Adds advice to an out-of-memory error; the error itself is raised unchanged."""

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
        """Keep the batch's size as text: a reference to the batch would keep its memory."""
        self.stage, self.batch = stage, describe(batch) if isinstance(batch, Batch) else ""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if is_out_of_memory(exception):
            log.error("%s", self.message(trainer, pl_module))

    def message(self, trainer: Trainer, module: LightningModule) -> str:
        """Where the run ran out of memory, and which settings to change."""
        device = trainer.strategy.root_device
        where = (
            f"in {self.stage}, at a batch of {self.batch}" if self.batch else f"before the first batch of {self.stage}"
        )
        entries = advice(trainer, module, data_module(trainer), training=self.stage == "training")
        return "\n".join(
            [
                f"out of memory on {device} {where}; the peak was {peak_bytes(device) / GIB:.1f} GiB."
                " Settings that need less, in the order to try:",
                *(f"  {number}. {entry}" for number, entry in enumerate(entries, 1)),
                "`python -m smollit estimate` with the same settings shows what a run needs",
            ]
        )


def describe(batch: Batch) -> str:
    """Number of sequences, positions, and the longest sequence."""
    longest = max((sum(document.length for document in row) for row in batch.layout), default=0)
    rows, width = batch.input_ids.shape
    return f"{rows:,} rows x {width:,} positions ({batch.num_tokens:,} tokens, longest row {longest:,})"


def advice(
    trainer: Trainer, module: LightningModule, data: LightningDataModule | None, training: bool = True
) -> list[Advice]:
    """Settings that need less memory: first those that do not change the result."""
    ours = module if isinstance(module, FineTuningModule) else None
    chats = data if isinstance(data, ChatDataModule) else None
    found: list[Advice] = []
    if training and ours:
        found += _checkpointing(ours)
    if chats:
        found += _train_batch(chats, trainer.accumulate_grad_batches) if training else _val_batch(chats)
    if ours:
        found += [*_reference(ours), *_chunk(ours)]
    if training:
        found += [*_sharding(trainer), *_precision(trainer)]
    return [*found, _length(chats)] if chats else found


def _checkpointing(module: FineTuningModule) -> Iterator[Advice]:
    if module.gradient_checkpointing is not True:
        now = str(module.gradient_checkpointing).lower()
        why = "keeps one activation per layer, about a third more time"
        yield Advice("model.gradient_checkpointing", now, "true", why)


def _train_batch(data: ChatDataModule, accumulate: int) -> Iterator[Advice]:
    size = data.train_batch_size
    if data.max_batch_tokens:
        now, better = data.max_batch_tokens, data.max_batch_tokens // 2
        yield Advice("data.max_batch_tokens", str(now), str(better), "fewer positions in each micro-batch")
    elif size > 1:
        windows = accumulate * size // (size // 2)
        why = f"with trainer.accumulate_grad_batches: {windows}, each step has as many rows"
        yield Advice("data.train_batch_size", str(size), str(size // 2), why)


def _val_batch(data: ChatDataModule) -> Iterator[Advice]:
    if data.val_batch_size > 1:
        now, better = data.val_batch_size, data.val_batch_size // 2
        yield Advice("data.val_batch_size", str(now), str(better), "metrics stay the same")


def _reference(module: FineTuningModule) -> Iterator[Advice]:
    if isinstance(module, DPOModule) and module.scorer.mode in ("frozen", "offloaded"):
        why = "no second model in memory: one pass over all pairs before training"
        yield Advice("model.reference", module.scorer.mode, "precomputed", why)


def _chunk(module: FineTuningModule) -> Iterator[Advice]:
    if module.chunk_size > SMALL_CHUNK:
        why = "smaller chunks of logits"
        yield Advice("model.chunk_size", str(module.chunk_size), str(SMALL_CHUNK), why)


def _sharding(trainer: Trainer) -> Iterator[Advice]:
    if not is_sharded(trainer) and trainer.num_devices * trainer.num_nodes > 1:
        why = "weights, gradients and optimizer state are divided among the devices"
        yield Advice("trainer.strategy", type(trainer.strategy).__name__, "fsdp", why)


def _precision(trainer: Trainer) -> Iterator[Advice]:
    """On a GPU alone: on a CPU, bf16-mixed takes no less memory than fp32."""
    now = str(trainer.precision)
    if trainer.strategy.root_device.type != "cuda" or now == "bf16-true":
        return
    if now == "32-true":
        yield Advice("trainer.precision", now, "bf16-mixed", "activations of half the size, and faster")
    else:
        why = "weights, gradients and optimizer state of half the size; small updates are lost"
        yield Advice("trainer.precision", now, "bf16-true", why)


def _length(data: ChatDataModule) -> Advice:
    """The last resort: it changes the data."""
    if data.packs:
        longest = data.pack_length
        return Advice("data.pack_length", str(longest), str(longest // 2), "with data.max_length not above it")
    longest = data.max_length
    return Advice("data.max_length", str(longest), str(longest // 2), "longer rows are truncated or dropped")
