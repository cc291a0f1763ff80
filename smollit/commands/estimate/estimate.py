"""What a run needs, before it starts: memory by part, tokens, steps and time."""

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Trainer
from rich.console import Console

from smollit.batch import Batch
from smollit.commands.estimate.epoch import (
    Epoch,
    Moment,
    Rows,
    describe_epoch,
    heaviest_moments,
    num_devices,
    positions,
)
from smollit.commands.estimate.memory import Parts, StepMemory, fixed_parts, head_bytes, saved_bytes, total
from smollit.commands.estimate.probe import Probe, place, run_probe
from smollit.commands.estimate.view import show
from smollit.data import ChatDataModule
from smollit.modules import DPOModule, FineTuningModule
from smollit.training.memory import free_bytes, held_bytes, keep_freed_memory
from smollit.training.out_of_memory import advice, is_sharded

log = logging.getLogger(__name__)
ALLOWANCE = (0.2, 0.05)  # on a CPU, on a GPU: what comes on top of the formulas where no probe measured it


@dataclass(frozen=True)
class Estimate:
    """What a run needs.

    Args:
        parameters: Of the policy.
        trainable: Those that are trained.
        memory: Bytes of each part at the peak, on one device; the sum is the peak.
        heaviest: Rows and positions of the heaviest micro-batch.
        free: Bytes that the device has left for the run; None if it does not say.
        fits: Whether the run fits; None if `free` is unknown.
        most_positions: Positions of a micro-batch that would just fit.
        epoch: Counts of one epoch.
        seconds_per_step: From the probe; None without one.
        hours: Of the whole run, without validation; None without a probe.
        advice: Settings that need less memory, in the order to try.
    """

    parameters: int
    trainable: int
    memory: Parts
    heaviest: tuple[int, int]
    free: int | None
    fits: bool | None
    most_positions: int | None
    epoch: Epoch
    seconds_per_step: float | None
    hours: float | None
    advice: list[str]

    @property
    def peak(self) -> int:
        """Bytes at the peak."""
        return sum(self.memory.values())


def estimate(
    trainer: Trainer,
    module: FineTuningModule,
    data: ChatDataModule,
    *,
    time_probe: bool = True,
    path: Path | None = None,
    console: Console | None = None,
) -> Estimate:
    """Estimate, print, and write JSON if a path is given.

    Args:
        trainer: Its precision, devices, accumulation and length of the run count.
        module: Whose model is loaded, and trained for a few steps if there is memory for it.
        data: Tokenised if need be.
        time_probe: Report how long a step lasts.
        path: JSON file; null writes none.
        console: Where to print.
    """
    found = make_estimate(trainer, module, data, time_probe=time_probe)
    show(console or Console(), found)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**asdict(found), "peak": found.peak}, indent=2) + "\n", encoding="utf-8")
    return found


def make_estimate(
    trainer: Trainer, module: FineTuningModule, data: ChatDataModule, *, time_probe: bool = True
) -> Estimate:
    """All of it, without printing.

    Raises:
        ValueError: If the data are streamed: the number and lengths of rows are not known then.
    """
    batches = all_batches(data)
    device = trainer.strategy.root_device
    if device.type == "cpu":
        keep_freed_memory()  # as training does
    free, held = free_bytes(device), held_bytes(device)
    load(module)
    sizes = [positions(data.sampler().lengths, batch, module.attention) for batch in batches]
    epoch = describe_epoch(data, batches, sizes, trainer)
    moments = heaviest_moments(sizes, trainer.accumulate_grad_batches, epoch.run_steps)
    heavy = {moment: fetch(data, batches[moment.batch]) for moment in moments}
    memory, probe = measure(trainer, module, heavy, free=free, held=held, time_probe=time_probe)
    largest = max(moments, key=lambda moment: moment.size)
    seconds = None
    if probe is not None:
        mean_size = epoch.computed / len(batches)
        passes = probe.passes / moments[-1].size * mean_size * trainer.accumulate_grad_batches
        seconds = passes + probe.optimizer
    weights = list(module.policy.parameters())
    return Estimate(
        parameters=sum(weight.numel() for weight in weights),
        trainable=sum(weight.numel() for weight in weights if weight.requires_grad),
        memory=memory,
        heaviest=(len(batches[largest.batch]), largest.size),
        free=free,
        fits=None if free is None else total(memory) - held <= free,
        most_positions=None if free is None else most_positions(memory, largest.size, free),
        epoch=epoch,
        seconds_per_step=seconds,
        hours=None if seconds is None else seconds * epoch.run_steps / 3600,
        advice=[str(entry) for entry in advice(trainer, module, data)],
    )


def measure(
    trainer: Trainer,
    module: FineTuningModule,
    heavy: dict[Moment, Batch],
    *,
    free: int | None,
    held: int,
    time_probe: bool,
) -> tuple[Parts, Probe | None]:
    """Bytes of each part at the peak, on one device, and what the probe measured, if it ran.

    What formulas leave out, the probe measures. Without a probe it is an allowance.
    """
    device, context = trainer.strategy.root_device, trainer.precision_plugin.forward_context
    moments, overhead = list(heavy), ALLOWANCE[device.type == "cuda"]
    fixed = fixed_parts(module)
    place(module, device if free is None or fixed["weights"] + fixed["reference"] < free else torch.device("cpu"))
    largest = max(moments, key=lambda moment: moment.size)
    with context():
        saved = saved_bytes(module, move_data_to_device(heavy[largest], module.device))
    step = StepMemory(fixed, saved / largest.size, head_bytes(module, heavy[largest]))
    counted, probe = total(step.peak(moments)), None
    if time_probe and free is not None and counted * (1 + overhead) > free:
        log.warning("no probe step runs, and no time is estimated: %s has no room for it", device)
    elif time_probe:
        first, later = ([heavy[moment] for moment in moments if moment.optimizer is has] for has in (False, True))
        probe = run_probe(module, first, later, accumulates=trainer.accumulate_grad_batches > 1, context=context)
        overhead = max((probe.peak - held) / counted - 1, 0.0)
    parts = step._replace(fixed=spread(fixed, trainer)).peak(moments)
    return {**parts, "allocator": int(overhead * total(parts)), "process": held}, probe


def all_batches(data: ChatDataModule) -> list[Rows]:
    """The micro-batches of the first epoch, as a single device would get them."""
    if data.streaming:
        raise ValueError(
            "`estimate` needs the lengths of all rows, which `data.streaming` does not have: set it to false, and use"
            " a slice such as `data.train_split: train[:1000]`"
        )
    data.prepare_data()
    data.setup("fit")
    batches = list(data.sampler())
    if not batches:
        raise ValueError("the training split has no row with loss tokens: see `python -m smollit inspect`")
    return batches


def load(module: FineTuningModule) -> None:
    """Load the policy, and the reference where training keeps one. Compiled or not, memory is about the same."""
    module.compile_policy = False
    if isinstance(module, DPOModule) and module.scorer.mode == "precomputed":
        FineTuningModule.configure_model(module)  # DPO's own would score all pairs now
    else:
        module.configure_model()


def fetch(data: ChatDataModule, rows: Rows) -> Batch:
    """The batch of these rows, as training gets it; values of a reference that has no model are zeros."""
    batch = data.collate(data.examples["train"].__getitems__(rows))
    return batch._replace(reference_logps=torch.zeros(len(batch.response_lengths)))


def spread(fixed: Parts, trainer: Trainer) -> Parts:
    """Bytes on one of several devices: a part of everything that is sharded, or DDP's buckets beside the gradients."""
    devices = num_devices(trainer)
    if devices == 1:
        return fixed
    if is_sharded(trainer):
        return {name: size // devices for name, size in fixed.items()}
    return {**fixed, "gradients": 2 * fixed["gradients"]}


def most_positions(memory: Parts, size: int, free: int) -> int:
    """Positions of a micro-batch that would just fit, if activations grow with them and all else stays."""
    grows = memory["activations"] + memory["allocator"]
    room = free - (sum(memory.values()) - memory["process"])
    return max(int(size * (1 + room / max(grows, 1))), 0)
