"""Memory of a training step: formulas, a count of autograd's saved tensors, and real steps that measure the rest."""

import math
import time
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn

from smollit.batch import Batch
from smollit.models.sharding import unwrap
from smollit.modules import DPOModule, FineTuningModule
from smollit.training.memory import peak_bytes

Parts = dict[str, int]  # bytes by name
Context = Callable[[], AbstractContextManager[None]]  # the precision's context of forward passes
LOGIT_BYTES = 8  # an fp32 logit, and its fp32 log-probability or gradient


def fixed_parts(module: FineTuningModule) -> Parts:
    """Bytes of the parts that do not depend on the batch, on a device that holds all of them."""
    reference = tensors(module.reference) if isinstance(module, DPOModule) and module.scorer.has_model else []
    return {
        "weights": sum(tensor.nbytes for tensor in tensors(module.policy)),
        "reference": sum(tensor.nbytes for tensor in reference),
        "gradients": sum(weight.nbytes for weight in trainable(module)),
        "optimizer": optimizer_bytes(module),
    }


def tensors(model: nn.Module) -> list[Tensor]:
    """Parameters and buffers; tied ones once."""
    return [*model.parameters(), *model.buffers()]


def trainable(module: FineTuningModule) -> list[nn.Parameter]:
    """The parameters that training changes."""
    return [weight for weight in module.policy.parameters() if weight.requires_grad]


def optimizer_bytes(module: FineTuningModule) -> int:
    """Bytes of the optimizer's state, from a real step on one tensor of each shape, on the CPU."""
    size = 0
    for (shape, dtype), count in Counter((weight.shape, weight.dtype) for weight in trainable(module)).items():
        weight = nn.Parameter(torch.zeros(shape, dtype=dtype))
        weight.grad = torch.zeros_like(weight)
        optimizer = module.optimizer([weight])
        optimizer.step()
        size += count * sum(value.nbytes for value in optimizer.state[weight].values() if isinstance(value, Tensor))
    return size


def head_bytes(module: FineTuningModule, batch: Batch) -> int:
    """Bytes of the logits of one chunk, with their log-probabilities."""
    chunks = max(math.ceil(batch.num_loss_tokens / module.chunk_size), 1)
    vocabulary_size: int = unwrap(module.policy).config.vocab_size
    return math.ceil(batch.num_loss_tokens / chunks) * vocabulary_size * LOGIT_BYTES


def move_to(module: FineTuningModule, device: torch.device) -> None:
    """Move everything that a step needs to a device; enable dropout and checkpointing, as training does."""
    module.to(device)
    module.policy.train()
    if isinstance(module, DPOModule) and module.scorer.has_model:
        module.scorer.place(device)


def saved_bytes(module: FineTuningModule, batch: Batch, context: Context) -> int:
    """Bytes that autograd saves in the forward pass of a micro-batch, besides parameters and buffers.

    Saved tensors are counted and not kept, so the pass needs little more memory than the weights.
    """
    seen = weakref.WeakSet(tensor.untyped_storage() for tensor in tensors(module.policy))
    size = 0

    def count(tensor: Tensor) -> None:
        nonlocal size
        storage = tensor.untyped_storage()
        if storage not in seen:
            seen.add(storage)
            size += storage.nbytes()

    with context(), torch.autograd.graph.saved_tensors_hooks(count, lambda nothing: nothing):
        module.step(move_data_to_device(batch, module.device), "train")
    return size


class Probe(NamedTuple):
    """Measurements of real steps.

    Args:
        peak: Highest memory use of the device, in bytes.
        passes: Seconds of the forward and backward pass of the last micro-batch.
        optimizer: Seconds of an optimizer step.
    """

    peak: int
    passes: float
    optimizer: float


def run_probe(
    module: FineTuningModule, steps: Sequence[Sequence[Batch]], *, accumulates: bool, context: Context
) -> Probe:
    """Train for a few steps. The weights change: do not use the module afterwards.

    Args:
        module: The module, on its device.
        steps: Micro-batches of each optimizer step.
        accumulates: Whether steps have several micro-batches, so that those of later steps find gradients.
        context: The precision's context of forward passes.
    """
    optimizer, seconds = module.optimizer(trainable(module)), (0.0, 0.0)
    if module.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(module.device)
    for number, batches in enumerate(steps):
        for index, batch in enumerate(batches):
            began = time.perf_counter()
            with context():
                loss = module.step(move_data_to_device(batch, module.device), "train")[0] / module.nominal_count
            if index == 0 and not (number and accumulates):
                optimizer.zero_grad()  # as Lightning does: old gradients outlast the forward pass
            loss.backward()
            del loss
            passed = _now(module.device)
        optimizer.step()
        seconds = passed - began, _now(module.device) - passed
    return Probe(peak_bytes(module.device), *seconds)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
