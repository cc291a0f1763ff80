"""Memory of a training step: formulas, a count of autograd's saved tensors, and real steps that measure the rest."""

import logging
import math
import time
import weakref
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import NamedTuple

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Trainer
from torch import Tensor

from smollit.batch import Batch
from smollit.commands.estimate.epoch import num_devices
from smollit.models.adapters import quantized_layers
from smollit.models.sharding import unwrap
from smollit.modules import DPOModule, FineTuningModule
from smollit.training.memory.budget import optimizer_bytes, trainable
from smollit.training.memory.device import is_sharded, keep_freed_memory, peak_bytes

log = logging.getLogger(__name__)
Parts = dict[str, int]  # bytes by name
LATER = ("gradients", "optimizer")  # parts that come with the first backward pass, and with the first step
Seconds = tuple[float, float]  # of a micro-batch's forward and backward pass, and of an optimizer step
LOGIT_BYTES = 8  # an fp32 logit, and its fp32 log-probability or gradient
SPARED = 0.25  # fraction of the free memory that the probe must not need: no estimate depends on it


class Measured(NamedTuple):
    """What a run needs at its peak.

    Args:
        parts: Bytes of each part, on one device.
        fullest: Index of the micro-batch whose forward pass ends at the peak.
        seconds: The probe's times; None if there was no room for it.
    """

    parts: Parts
    fullest: int
    seconds: Seconds | None


def measure(
    trainer: Trainer, module: FineTuningModule, batches: list[Batch], *, free: int | None, held: int, probe: bool
) -> Measured:
    """Bytes of each part at the peak, as they are together at the end of a forward pass, and times.

    The probe measures the rest, "allocator"; without it that part is missing, and the sum is a lower bound.
    """
    device, fixed, seconds = trainer.strategy.root_device, fixed_parts(module), None
    module.to(device if free is None or fixed["weights"] + fixed["reference"] < free else "cpu")
    module.policy.train()  # with dropout and checkpointing
    if isinstance(module, DPOModule):
        module.scorer.place(module.device)
    counted, fullest, fixed, own = max(candidates(trainer, module, batches, fixed), key=itemgetter(0))
    parts = spread(fixed, trainer) | own
    if probe and free is not None and counted > (1 - SPARED) * free:
        log.warning("no probe step runs, and no time is estimated: %s has too little memory", device)
    elif probe:
        seconds = run_probe(trainer, module, batches)
        overhead = max((peak_bytes(device) - held) / counted - 1, 0.0)
        parts["allocator"] = int(overhead * sum(parts.values()))
    return Measured({**parts, "process": held}, fullest, seconds)


def candidates(
    trainer: Trainer, module: FineTuningModule, batches: list[Batch], fixed: Parts
) -> Iterator[tuple[int, int, Parts, Parts]]:
    """The largest micro-batch and the last one: bytes on one device, index, and parts, the fixed ones and its own.

    The first micro-batch finds no gradients, and those of the first step find no optimizer state.
    """
    accumulates, last = trainer.accumulate_grad_batches > 1, len(batches) - 1
    largest = max(range(len(batches)), key=lambda index: batches[index].num_tokens)
    for index in sorted({largest, last}):
        batch, missing = batches[index], LATER[index:] if index < last and (accumulates or index == 0) else ()
        own = {"activations": saved_bytes(trainer, module, batch), "head chunk": head_bytes(module, batch)}
        there = fixed | dict.fromkeys(missing, 0)
        yield sum((there | own).values()), index, there, own


def fixed_parts(module: FineTuningModule) -> Parts:
    """Bytes of the parts that do not depend on the batch, on a device that holds all of them."""
    scales = sum(layer.weight.quant_state.absmax.nbytes for _, layer in quantized_layers(module.policy))
    reference = module.reference if isinstance(module, DPOModule) and module.scorer.has_model else None
    return {
        "weights": unwrap(module.policy).model.get_memory_footprint() + scales,
        "reference": unwrap(reference).model.get_memory_footprint() if reference is not None else 0,
        "gradients": sum(weight.nbytes for weight in trainable(module)),
        "optimizer": optimizer_bytes(module),
    }


def head_bytes(module: FineTuningModule, batch: Batch) -> int:
    """Bytes of the logits of one chunk, with their log-probabilities."""
    chunks = max(math.ceil(batch.num_loss_tokens / module.chunk_size), 1)
    vocabulary_size: int = unwrap(module.policy).config.vocab_size
    return math.ceil(batch.num_loss_tokens / chunks) * vocabulary_size * LOGIT_BYTES


def saved_bytes(trainer: Trainer, module: FineTuningModule, batch: Batch) -> int:
    """Bytes that autograd saves in the forward pass of a micro-batch, besides parameters and buffers.

    Saved tensors are counted and not kept, so the pass needs little more memory than the weights.
    """
    seen = weakref.WeakSet(x.untyped_storage() for x in (*module.policy.parameters(), *module.policy.buffers()))
    sizes = []

    def count(tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in seen:
            seen.add(storage)
            sizes.append(storage.nbytes())

    with torch.autograd.graph.saved_tensors_hooks(count, lambda nothing: nothing):
        forward(trainer, module, batch)
    return sum(sizes)


def forward(trainer: Trainer, module: FineTuningModule, batch: Batch) -> Tensor:
    """The loss of a micro-batch, in the precision of the run."""
    with trainer.precision_plugin.forward_context():
        return module.step(move_data_to_device(batch, module.device), "train")[0] / module.nominal_count


def run_probe(trainer: Trainer, module: FineTuningModule, batches: Sequence[Batch]) -> Seconds:
    """Train for a few steps, and time the last. The weights change: do not use the module afterwards.

    Each micro-batch is an optimizer step; with accumulation the first two are one, and all later ones find gradients.
    """
    accumulates = trainer.accumulate_grad_batches > 1 and len(batches) > 1
    optimizer, device = module.optimizer(trainable(module)), module.device
    if device.type == "cpu":
        keep_freed_memory()  # as training does, and only now: the peak would contain what was freed before
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for number, batch in enumerate(batches):
        began = _now(device)
        loss = forward(trainer, module, batch)
        if number == 0 or not accumulates:
            optimizer.zero_grad()  # as Lightning does: old gradients outlast the forward pass
        loss.backward()
        del loss
        passed = _now(device)
        if number or not accumulates:
            optimizer.step()
    return passed - began, _now(device) - passed


def spread(fixed: Parts, trainer: Trainer) -> Parts:
    """Bytes on one of several devices: a fraction of what is sharded, or DDP's buckets besides the gradients.

    Inside an accumulation window, gradients are not reduced, so each device holds all of them.
    """
    devices = num_devices(trainer)
    if is_sharded(trainer):
        whole = {"gradients": fixed["gradients"]} if trainer.accumulate_grad_batches > 1 else {}
        return {name: size // devices for name, size in fixed.items()} | whole
    return fixed if devices == 1 else {**fixed, "gradients": 2 * fixed["gradients"]}


def _now(device: torch.device) -> float:
    torch.get_device_module(device).synchronize()
    return time.perf_counter()
