"""A few real optimizer steps on the heaviest micro-batches: the peak of memory, and how long a step lasts."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from lightning.fabric.utilities import move_data_to_device
from torch.optim import Optimizer

from smollit.batch import Batch
from smollit.commands.estimate.memory import trainable
from smollit.modules import DPOModule, FineTuningModule
from smollit.training.memory import peak_bytes

Context = Callable[[], AbstractContextManager[None]]
LATER_STEPS = 2
SECONDS = 30.0  # after which no further step begins


class Probe(NamedTuple):
    """Measurements of real steps.

    Args:
        peak: Highest memory use of the device, in bytes.
        passes: Seconds of a forward and backward pass of the last micro-batch.
        optimizer: Seconds of an optimizer step.
    """

    peak: int
    passes: float
    optimizer: float


def place(module: FineTuningModule, device: torch.device) -> None:
    """Move everything that a step needs to a device; turn dropout and checkpointing on, as training does."""
    module.to(device)
    module.policy.train()
    if isinstance(module, DPOModule) and module.scorer.has_model:
        module.scorer.place(device)


def run_probe(
    module: FineTuningModule, first: Sequence[Batch], later: Sequence[Batch], *, accumulates: bool, context: Context
) -> Probe:
    """Train for a few steps. The weights change: the module is of no further use.

    Args:
        module: On its device.
        first: Micro-batches of the first optimizer step, which has no optimizer state yet.
        later: Micro-batches of a later step; none if there is but one step.
        accumulates: A step has several micro-batches: a later one finds gradients.
        context: The precision's context of forward passes.
    """
    optimizer, start = module.optimizer(trainable(module)), time.perf_counter()
    if module.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(module.device)
    seconds = [_run_step(module, optimizer, first, True, context)]
    for _ in range(LATER_STEPS if later else 0):
        if time.perf_counter() - start < SECONDS or len(seconds) == 1:
            seconds.append(_run_step(module, optimizer, later, not accumulates, context))
    return Probe(peak_bytes(module.device), *min(seconds[1:] or seconds))


def _run_step(
    module: FineTuningModule, optimizer: Optimizer, batches: Sequence[Batch], clears: bool, context: Context
) -> tuple[float, float]:
    """One optimizer step; return the seconds of its last micro-batch's passes and of the optimizer."""
    for index, batch in enumerate(batches):
        began = time.perf_counter()
        with context():
            loss = module.step(move_data_to_device(batch, module.device), "train")[0] / module.nominal_count
        if clears and index == 0:
            optimizer.zero_grad()  # as Lightning does: old gradients outlast the forward pass
        loss.backward()
        del loss
        passes = _seconds_since(began, module.device)
    began = time.perf_counter()
    optimizer.step()
    return passes, _seconds_since(began, module.device)


def _seconds_since(began: float, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began
