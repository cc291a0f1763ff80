"""Settings that make a run need less memory, in the order in which to try them: for `estimate`, and when it ran out."""

from typing import Any, NamedTuple

from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy

from smollit.data import ChatDataModule
from smollit.modules import DPOModule, FineTuningModule


class Advice(NamedTuple):
    """One setting to change.

    Args:
        setting: Its name on the command line.
        now: Its value.
        better: A value that needs less memory.
        why: What it does, and what it costs.
    """

    setting: str
    now: str
    better: str
    why: str

    def __str__(self) -> str:
        return f"{self.setting}: {self.now} -> {self.better} ({self.why})"


def training_advice(trainer: Any, module: Any, data: Any) -> list[Advice]:
    """What to change for less memory in training: first what leaves the result as it is."""
    found = []
    if isinstance(module, FineTuningModule):
        found += _of_checkpointing(module)
    if isinstance(data, ChatDataModule):
        found += _of_batch(data, trainer.accumulate_grad_batches)
    if isinstance(module, FineTuningModule):
        found += _of_reference(module, trainer) + _of_chunk(module)
    found += _of_sharding(trainer) + _of_precision(trainer)
    if isinstance(data, ChatDataModule):
        found.append(_of_length(data))
    return found


def evaluation_advice(trainer: Any, module: Any, data: Any) -> list[Advice]:
    """What to change for less memory in validation, test and prediction."""
    found = []
    if isinstance(data, ChatDataModule) and data.val_batch_size > 1:
        size = data.val_batch_size
        found.append(Advice("data.val_batch_size", str(size), str(size // 2), "figures stay the same"))
    if isinstance(module, FineTuningModule):
        found += _of_reference(module, trainer) + _of_chunk(module)
    if isinstance(data, ChatDataModule):
        found.append(_of_length(data))
    return found


def sharded(trainer: Any) -> bool:
    """Whether each device holds only a part of the weights."""
    return isinstance(trainer.strategy, FSDPStrategy | ModelParallelStrategy)


def _of_checkpointing(module: FineTuningModule) -> list[Advice]:
    if module.gradient_checkpointing is True:
        return []
    now = "false" if module.gradient_checkpointing is False else str(module.gradient_checkpointing)
    why = "keeps one activation per layer, about a third more time"
    return [Advice("model.gradient_checkpointing", now, "true", why)]


def _of_batch(data: ChatDataModule, accumulate: int) -> list[Advice]:
    if data.max_batch_tokens:
        now = data.max_batch_tokens
        return [Advice("data.max_batch_tokens", str(now), str(now // 2), "fewer positions in each micro-batch")]
    size = data.train_batch_size
    if size == 1:
        return []
    why = f"with trainer.accumulate_grad_batches: {accumulate * size // (size // 2)}, each step sees as many rows"
    return [Advice("data.train_batch_size", str(size), str(size // 2), why)]


def _of_reference(module: FineTuningModule, trainer: Any) -> list[Advice]:
    if not isinstance(module, DPOModule) or module.scorer.mode == "precomputed":
        return []
    why = "no second model in memory: one pass over all pairs before training"
    return [Advice("model.reference", module.scorer.mode, "precomputed", why)]


def _of_chunk(module: FineTuningModule) -> list[Advice]:
    if module.chunk_size <= 256:
        return []
    return [Advice("model.chunk_size", str(module.chunk_size), "256", "fewer logits at the same time")]


def _of_sharding(trainer: Any) -> list[Advice]:
    if sharded(trainer) or trainer.num_devices * trainer.num_nodes == 1:
        return []
    why = "weights, gradients and optimizer state are divided among the devices"
    return [Advice("trainer.strategy", type(trainer.strategy).__name__, "fsdp", why)]


def _of_precision(trainer: Any) -> list[Advice]:
    """bf16 is for GPUs: on most CPUs it is very slow."""
    now, on_gpu = str(trainer.precision), trainer.strategy.root_device.type == "cuda"
    if not on_gpu or now == "bf16-true":
        return []
    if now == "32-true":
        return [Advice("trainer.precision", now, "bf16-mixed", "activations of half the size, and faster")]
    why = "weights, gradients and optimizer state of half the size; small updates are lost"
    return [Advice("trainer.precision", now, "bf16-true", why)]


def _of_length(data: ChatDataModule) -> Advice:
    """The last resort: it changes what is trained."""
    if data.packs:
        longest = data.pack_length
        return Advice("data.pack_length", str(longest), str(longest // 2), "and data.max_length not above it")
    return Advice("data.max_length", str(data.max_length), str(data.max_length // 2), "longer rows are cut or dropped")
