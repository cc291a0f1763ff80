"""One epoch of the sampler: its size, its optimizer steps, and the micro-batches that need the most memory."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lightning.pytorch import Trainer

from smollit.data import ChatDataModule
from smollit.data.batching.packing import fill_rate
from smollit.data.batching.sampler import row_length
from smollit.functional.attention import WITHOUT_PADDING, AttentionSetting

Rows = list[list[int]]  # a micro-batch: the examples of each row
LATER_STEPS = 2  # of different size, as in training: memory that is freed does not fit the next batch


@dataclass(frozen=True)
class Epoch:
    """Counts of one epoch, over all devices.

    Args:
        examples: Chats, or prompts with their pairs.
        rows: Sequences, each of one example or of several packed ones.
        tokens: Positions without padding.
        loss_tokens: Tokens that the loss is computed on.
        computed: Positions that the model computes, with padding where the attention backend needs it.
        batches: Micro-batches of each device.
        steps: Optimizer steps.
        run_steps: Optimizer steps of the whole run.
        packed_fraction: Fraction of the packed sequences' positions that hold tokens; None without packing.
    """

    examples: int
    rows: int
    tokens: int
    loss_tokens: int
    computed: int
    batches: int
    steps: int
    run_steps: int
    packed_fraction: float | None

    @property
    def padding_fraction(self) -> float:
        """Fraction of the computed positions that holds no token."""
        return 1 - self.tokens / max(self.computed, 1)


def positions(lengths: Sequence[int], batch: Rows, attention: AttentionSetting) -> int:
    """Positions that the model computes for a micro-batch."""
    sizes = [row_length(lengths, row) for row in batch]
    return sum(sizes) if attention in WITHOUT_PADDING else max(sizes, default=0) * len(sizes)


def describe_epoch(data: ChatDataModule, batches: Sequence[Rows], sizes: Sequence[int], trainer: Trainer) -> Epoch:
    """Count the first epoch.

    Args:
        data: The data module, set up for `fit`.
        batches: All micro-batches of the epoch, as for a single device.
        sizes: Computed positions of each micro-batch.
        trainer: Gives the number of devices, micro-batches per step, steps and epochs.
    """
    documents = data.documents("train")
    lengths, loss_tokens = documents.lengths, documents.loss_tokens
    rows = [row for batch in batches for row in batch]
    members = [example for row in rows for example in row]
    limit = trainer.limit_train_batches  # a whole number is a count, a fraction a part: Lightning's rule
    per_device = math.ceil(len(batches) / num_devices(trainer))
    per_device = min(per_device, limit) if isinstance(limit, int) else int(per_device * limit)
    steps = math.ceil(per_device / trainer.accumulate_grad_batches)
    return Epoch(
        examples=len(members),
        rows=len(rows),
        tokens=sum(lengths[example] for example in members),
        loss_tokens=int(loss_tokens[members].sum()),
        computed=sum(sizes),
        batches=per_device,
        steps=steps,
        run_steps=_run_steps(steps, trainer),
        packed_fraction=fill_rate(lengths, rows, data.pack_length) if data.packs else None,
    )


def num_devices(trainer: Trainer) -> int:
    """Devices of the run; the trainer's world size is known only once processes are started."""
    return trainer.num_devices * trainer.num_nodes


def heaviest(sizes: Sequence[int], accumulate: int, run_steps: int) -> tuple[list[int], list[int]]:
    """Micro-batches that need the most memory: of the first optimizer step, and of later ones, the largest last.

    The first step has no optimizer state yet, and its first micro-batch finds no gradients.
    """
    first, later = range(1, min(accumulate, len(sizes))), range(accumulate, min(accumulate * run_steps, len(sizes)))
    by_size = [sorted(some, key=sizes.__getitem__) for some in (first, later)]
    return [0, *by_size[0][-1:]], by_size[1][-LATER_STEPS:]


def _run_steps(steps: int, trainer: Trainer) -> int:
    """The smaller of `max_steps` and `max_epochs`; -1 and null set no limit."""
    limits = [] if trainer.max_steps < 0 else [trainer.max_steps]
    if trainer.max_epochs is not None and trainer.max_epochs >= 0:
        limits.append(trainer.max_epochs * steps)
    return min(limits, default=steps)
