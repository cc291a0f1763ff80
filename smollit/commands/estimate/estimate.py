"""`estimate`: what a run will need, before anything is spent: memory by part, tokens, steps and time."""

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from smollit.commands.estimate.epoch import (
    Epoch,
    Rows,
    describe_epoch,
    fetch,
    heaviest,
    num_devices,
    positions,
)
from smollit.commands.estimate.memory import Parts, peak_parts
from smollit.commands.estimate.time import Speed, measure_speed, usual_rows
from smollit.commands.estimate.view import show
from smollit.data import ChatDataModule
from smollit.models.attention import transformers_name
from smollit.modules import DPOModule, FineTuningModule
from smollit.training.memory import free_bytes, held_bytes
from smollit.training.out_of_memory import advice, is_sharded

log = logging.getLogger(__name__)
ONE_PASS_BACKENDS = ("flex_attention", "flash_attention_2")  # kernels that can't be run without a GPU and real numbers


@dataclass(frozen=True)
class Estimate:
    """What a run will need.

    Args:
        parameters: Of the policy.
        trainable: Those that are trained.
        memory: Bytes of each part at the highest point, on one device; the sum is the peak.
        heaviest: Rows and positions of the heaviest micro-batch.
        free: Bytes that the device has left for the run; None if it does not say.
        fits: Whether the run fits; None if `free` is unknown.
        most_positions: Positions of a micro-batch that would just fit.
        epoch: What one epoch has.
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
        """Bytes at the highest point."""
        return sum(self.memory.values())


def estimate(
    trainer: Any, module: FineTuningModule, data: ChatDataModule, time_probe: bool, path: Path | None, console: Console
) -> Estimate:
    """Estimate, print, and write JSON if a path is given.

    Args:
        trainer: Its precision, devices, accumulation and length of the run count.
        module: Whose model is loaded, and tried if there is memory for it.
        data: Tokenised if need be.
        time_probe: Run a few real passes.
        path: JSON file; null writes none.
        console: Where to print.
    """
    found = make_estimate(trainer, module, data, time_probe)
    show(console, found)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**asdict(found), "peak": found.peak}, indent=2) + "\n", encoding="utf-8")
    return found


def make_estimate(trainer: Any, module: FineTuningModule, data: ChatDataModule, time_probe: bool) -> Estimate:
    """All of it, without printing.

    Raises:
        ValueError: If the data are streamed: nobody knows how many rows there will be, or how long.
    """
    batches = all_batches(data)
    device = trainer.strategy.root_device
    free, held = free_bytes(device), held_bytes(device)
    load(module)
    epoch = describe_epoch(data, batches, trainer, module.attention)
    first, later = heaviest(
        data.sampler().lengths, batches, module.attention, trainer.accumulate_grad_batches, epoch.run_steps
    )
    memory = spread(memory_parts(trainer, module, data, first, later, held), trainer)
    largest = max([*first, *later], key=lambda rows: positions(data.sampler().lengths, rows, module.attention))
    size = positions(data.sampler().lengths, largest, module.attention)
    needed = sum(memory.values()) - memory["process"]
    speed = probe(trainer, module, data, batches, memory, free) if time_probe else None
    per_step = speed.step(epoch.computed / len(batches) * trainer.accumulate_grad_batches) if speed else None
    parameters = list(module.policy.parameters())
    return Estimate(
        parameters=sum(parameter.numel() for parameter in parameters),
        trainable=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        memory=memory,
        heaviest=(len(largest), size),
        free=free,
        fits=None if free is None else needed <= free,
        most_positions=None if free is None else most_positions(memory, size, free),
        epoch=epoch,
        seconds_per_step=per_step,
        hours=None if per_step is None else per_step * epoch.run_steps / 3600,
        advice=[str(entry) for entry in advice(trainer, module, data)],
    )


def all_batches(data: ChatDataModule) -> list[Rows]:
    """The micro-batches of the first epoch, as one device alone would get them."""
    if data.streaming:
        raise ValueError(
            "`estimate` needs the lengths of all rows, which `data.streaming` does not have: set it to false, and take"
            " a slice such as `data.train_split: train[:1000]`"
        )
    data.prepare_data()
    data.setup("fit")
    batches = list(data.sampler())
    if not batches:
        raise ValueError("the training split has no row that can be trained: see `python -m smollit inspect`")
    return batches


def load(module: FineTuningModule) -> None:
    """The policy, and the reference where training keeps one. Compiled or not, memory is about the same."""
    module.compile_policy = False
    if without_reference(module):
        FineTuningModule.configure_model(module)  # DPO's own would score all pairs now
    else:
        module.configure_model()


def without_reference(module: FineTuningModule) -> bool:
    """Whether batches bring the reference's values along."""
    return isinstance(module, DPOModule) and module.scorer.mode == "precomputed"


def memory_parts(
    trainer: Any, module: FineTuningModule, data: ChatDataModule, first: list[Rows], later: list[Rows], held: int
) -> Parts:
    """Bytes of each part on a device that holds everything; `process` is there before the model."""
    model, attention = module.policy.model, module.policy.attention  # type: ignore[union-attr]
    if attention in ONE_PASS_BACKENDS:
        log.info("attention %s is estimated as documents: it keeps as much", attention)
        model.set_attn_implementation(transformers_name("documents"))  # type: ignore[operator,union-attr]
        module.policy.attention = "documents"  # type: ignore[assignment]
    bring = without_reference(module)
    one, other = ([fetch(data, rows, bring) for rows in some] for some in (first, later))
    device, context = trainer.strategy.root_device, trainer.precision_plugin.forward_context
    parts = peak_parts(module, one, other, trainer.accumulate_grad_batches > 1, device, context)
    if attention in ONE_PASS_BACKENDS:
        model.set_attn_implementation(attention)  # type: ignore[operator,union-attr]
        module.policy.attention = attention
    return {**parts, "process": held}


def spread(parts: Parts, trainer: Any) -> Parts:
    """What one of several devices holds: a share of each sharded part, or DDP's buckets beside the gradients."""
    devices = num_devices(trainer)
    if devices == 1:
        return parts
    if not is_sharded(trainer):
        return {**parts, "gradients": 2 * parts["gradients"]}
    shares = {name: parts[name] // devices for name in ("weights", "reference", "gradients", "optimizer")}
    return {**parts, **shares}


def most_positions(memory: Parts, size: int, free: int) -> int:
    """Positions of a micro-batch that would just fit, if activations grow with them and all else stays."""
    grows = memory["activations"] + memory["allocator"]
    room = free - (sum(memory.values()) - memory["process"])
    return max(int(size * (1 + room / max(grows, 1))), 0)


def probe(
    trainer: Any, module: FineTuningModule, data: ChatDataModule, batches: list[Rows], memory: Parts, free: int | None
) -> Speed | None:
    """Real passes on rows of usual length, if what does not depend on the batch leaves room for them."""
    fixed = sum(memory[name] for name in ("weights", "reference", "head chunk")) + 3 * memory["weights"]
    if free is not None and fixed > 0.9 * free:
        log.warning("no time is estimated: there is no room for a probe on this device")
        return None
    device, lengths = trainer.strategy.root_device, data.sampler().lengths
    rows = usual_rows(lengths, batches, device)
    batch = fetch(data, rows, without_reference(module))
    computed = positions(lengths, rows, module.attention)
    return measure_speed(module, batch, computed, device, trainer.precision_plugin.forward_context)
