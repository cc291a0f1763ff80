"""The needs of a run before it starts: memory by part, tokens, steps and time."""

import logging
from dataclasses import dataclass

import torch
from lightning.pytorch import Trainer

from smollit.batch import Batch
from smollit.commands.estimate.epoch import Epoch, Rows, describe_epoch, heaviest, num_devices, positions
from smollit.commands.estimate.memory import (
    Parts,
    Probe,
    fixed_parts,
    head_bytes,
    move_to,
    run_probe,
    saved_bytes,
    trainable,
)
from smollit.data import ChatDataModule
from smollit.modules import FineTuningModule
from smollit.training.memory import advice, free_bytes, held_bytes, is_sharded, keep_freed_memory

log = logging.getLogger(__name__)
ALLOWANCE = {"cpu": 0.2, "cuda": 0.05}  # fraction of all parts, for temporary tensors, where no probe measures them


@dataclass(frozen=True)
class Estimate:
    """What a run needs.

    Args:
        parameters: Number of parameters of the policy.
        trainable: Number of trainable parameters.
        memory: Bytes of each part at the peak, on one device; the sum is the peak.
        heaviest: Rows and positions of the heaviest micro-batch.
        free: Bytes that the device has free for the run; None if it does not report it.
        fits: Whether the run fits; None if `free` is unknown.
        most_positions: Largest number of positions of a micro-batch that fits.
        epoch: Counts of one epoch.
        seconds_per_step: Seconds of an optimizer step, from the probe; None without one.
        hours: Hours of the whole run, without validation; None without a probe.
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


def estimate(trainer: Trainer, module: FineTuningModule, data: ChatDataModule, *, time_probe: bool = True) -> Estimate:
    """Estimate a run.

    Args:
        trainer: Gives precision, devices, accumulation and the length of the run.
        module: Its model is loaded, and trained for a few steps if there is memory for it.
        data: The data module, whose rows are tokenized if needed.
        time_probe: Whether to run real steps.
    """
    batches, device = all_batches(data), trainer.strategy.root_device
    if device.type == "cpu":
        keep_freed_memory()  # as training does
    free, held = free_bytes(device), held_bytes(device)
    module.trainer, module.compile_policy = trainer, False  # compiled or not, memory is about the same
    trainer.datamodule = data  # type: ignore[attr-defined]  # as `fit` does: the model gets an embedding for each token
    module.configure_model()
    sizes = [positions(data.documents("train").lengths, batch, module.attention) for batch in batches]
    epoch = describe_epoch(data, batches, sizes, trainer)
    first, later = heaviest(sizes, trainer.accumulate_grad_batches, epoch.run_steps)
    last = (first + later)[-1]
    steps = [[fetch(data, batches[index]) for index in step] for step in (first, *([index] for index in later))]
    memory, probe = measure(trainer, module, steps, free=free, held=held, probe=time_probe)
    seconds = None
    if probe is not None:
        passes = trainer.accumulate_grad_batches * epoch.computed / len(batches) / sizes[last]
        seconds = passes * probe.passes + probe.optimizer
    return Estimate(
        parameters=sum(weight.numel() for weight in module.policy.parameters()),
        trainable=sum(weight.numel() for weight in trainable(module)),
        memory=memory,
        heaviest=(len(batches[last]), sizes[last]),
        free=free,
        fits=None if free is None else sum(memory.values()) - held <= free,
        most_positions=None if free is None else most_positions(memory, sizes[last], free),
        epoch=epoch,
        seconds_per_step=seconds,
        hours=None if seconds is None else seconds * epoch.run_steps / 3600,
        advice=[str(entry) for entry in advice(trainer, module, data)],
    )


def measure(
    trainer: Trainer,
    module: FineTuningModule,
    steps: list[list[Batch]],
    *,
    free: int | None,
    held: int,
    probe: bool,
) -> tuple[Parts, Probe | None]:
    """Bytes of each part at the peak, on one device, and what the probe measured, if there was room for it.

    The parts are those of the last micro-batch; the probe's steps measure the rest.
    """
    device, context = trainer.strategy.root_device, trainer.precision_plugin.forward_context
    parts, overhead, found = fixed_parts(module), ALLOWANCE.get(device.type, 0.0), None
    move_to(module, device if free is None or parts["weights"] + parts["reference"] < free else torch.device("cpu"))
    batch = steps[-1][-1]
    rest = {"activations": saved_bytes(module, batch, context), "head chunk": head_bytes(module, batch)}
    counted = sum((parts | rest).values())
    if probe and free is not None and counted * (1 + overhead) > free:
        log.warning("no probe step runs, and no time is estimated: %s has too little memory", device)
    elif probe:
        found = run_probe(module, steps, accumulates=trainer.accumulate_grad_batches > 1, context=context)
        overhead = max((found.peak - held) / counted - 1, 0.0)
    parts = spread(parts, trainer) | rest
    return {**parts, "allocator": int(overhead * sum(parts.values())), "process": held}, found


def spread(fixed: Parts, trainer: Trainer) -> Parts:
    """Bytes on one of several devices: a fraction of what is sharded, or DDP's buckets besides the gradients."""
    devices = num_devices(trainer)
    if is_sharded(trainer):
        return {name: size // devices for name, size in fixed.items()}
    return fixed if devices == 1 else {**fixed, "gradients": 2 * fixed["gradients"]}


def all_batches(data: ChatDataModule) -> list[Rows]:
    """The micro-batches of the first epoch, as for a single device.

    Raises:
        ValueError: If the data are streamed, so the number and lengths of rows are unknown, or there are no rows.
    """
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


def fetch(data: ChatDataModule, rows: Rows) -> Batch:
    """The batch of these rows, as in training, with zeros for reference scores that are not computed yet."""
    batch = data.collate(data.documents("train").__getitems__(rows))
    return batch._replace(reference_logps=torch.zeros(len(batch.response_lengths)))


def most_positions(memory: Parts, size: int, free: int) -> int:
    """Largest number of positions of a micro-batch that fits, if activations grow with them and all else stays."""
    room = free - (sum(memory.values()) - memory["process"])
    return max(int(size * (1 + room / max(memory["activations"] + memory["allocator"], 1))), 0)
