"""How long a step lasts: a few real forward and backward passes on rows of usual length."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from lightning.fabric.utilities import move_data_to_device

from smollit.batch import Batch
from smollit.commands.estimate.epoch import Rows
from smollit.data.batching.sampler import row_length
from smollit.modules import DPOModule, FineTuningModule

SECONDS = 10.0  # after which no further pass begins
PASSES = 3  # besides one to warm up
PROBE_POSITIONS = {"cpu": 512, "cuda": 16_384}


class Speed(NamedTuple):
    """What the probe measured.

    Args:
        position: Seconds of forward and backward per computed position.
        optimizer: Seconds of one optimizer step.
    """

    position: float
    optimizer: float

    def step(self, positions: float) -> float:
        """Seconds of an optimizer step over so many positions of one device."""
        return self.position * positions + self.optimizer


def usual_rows(lengths: Sequence[int], batch: Sequence[Rows], device: torch.device) -> Rows:
    """Rows around the middle length: at least one, at most what a pass of a few seconds can take."""
    rows = sorted((row for rows in batch for row in rows), key=lambda row: row_length(lengths, row))
    start, most = len(rows) // 2, PROBE_POSITIONS.get(device.type, PROBE_POSITIONS["cpu"])
    chosen = [rows[start]]
    for row in rows[start + 1 : start + max(len(rows) for rows in batch)]:
        if sum(row_length(lengths, other) for other in [*chosen, row]) > most:
            break
        chosen.append(row)
    return chosen


def measure_speed(
    module: FineTuningModule,
    batch: Batch,
    computed: int,
    device: torch.device,
    context: Callable[[], AbstractContextManager[Any]],
) -> Speed:
    """Run real steps.

    The weights change: the module is for nothing else afterwards.

    Args:
        module: With its policy, and its reference if it has one, loaded.
        batch: Rows of usual length.
        computed: Positions of the batch that the model computes.
        device: Where to run.
        context: What forward passes run in.
    """
    module.policy.to(device).train()
    module.metrics.to(device)
    if isinstance(module, DPOModule) and module.scorer.has_model:
        module.scorer.place(device)
    batch = move_data_to_device(batch, device)
    optimizer = module.optimizer([parameter for parameter in module.policy.parameters() if parameter.requires_grad])

    def forward_backward() -> None:
        with context():
            loss = module.step(batch, "train")[0] / module.nominal_count
        loss.backward()

    passes = _median_seconds(forward_backward, device)
    return Speed(passes / computed, _median_seconds(optimizer.step, device))


def _median_seconds(run: Callable[[], Any], device: torch.device) -> float:
    """Of a few runs; the first one, which also sets things up, counts only if it took all the time there is."""
    times: list[float] = []
    start = time.perf_counter()
    while len(times) <= PASSES and (not times or time.perf_counter() - start < SECONDS):
        began = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    kept = sorted(times[1:] or times)
    return kept[len(kept) // 2]
