"""One epoch of the sampler: its size, its optimizer steps, and the micro-batches that need the most memory."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lightning.pytorch import Trainer

from smollit.data import ChatDataModule
from smollit.data.batching.packing import fill_rate
from smollit.data.batching.sampler import row_length
from smollit.functional.attention import WITHOUT_PADDING, AttentionSetting
from smollit.training.steps import is_timed

Rows = list[list[int]]  # a micro-batch: the examples of each row


@dataclass(frozen=True)
class Epoch:
    """Counts of one epoch, over all devices."""

    examples: int  # chats, or prompts with their pairs
    rows: int  # sequences, each of one example or of several packed ones
    tokens: int  # positions without padding
    loss_tokens: int  # tokens that the loss is computed on
    computed: int  # positions that the model computes, with padding where the attention backend needs it
    batches: int  # micro-batches of each device
    steps: int  # optimizer steps
    run_steps: int  # optimizer steps of the whole run
    packed_fraction: float | None  # of the packed sequences' positions, those that hold tokens; None without packing

    @property
    def padding_fraction(self) -> float:
        """Fraction of the computed positions that holds no token."""
        return 1 - self.tokens / max(self.computed, 1)


def positions(lengths: Sequence[int], batch: Rows, attention: AttentionSetting) -> int:
    """Positions that the model computes for a micro-batch."""
    sizes = [row_length(lengths, row) for row in batch]
    return sum(sizes) if attention in WITHOUT_PADDING else max(sizes, default=0) * len(sizes)


def describe_epoch(data: ChatDataModule, batches: Sequence[Rows], sizes: Sequence[int], trainer: Trainer) -> Epoch:
    """Count the first epoch: `batches` as for a single device, and the computed positions of each."""
    documents = data.documents("train")
    lengths, loss_tokens = documents.lengths, documents.loss_tokens
    rows = [row for batch in batches for row in batch]
    members = [example for row in rows for example in row]
    limit = trainer.limit_train_batches  # a whole number is a count, a fraction a part: Lightning's rule
    per_device = math.ceil(len(batches) / num_devices(trainer))
    per_device = min(per_device, limit) if isinstance(limit, int) else int(per_device * limit)
    steps = math.ceil(per_device / trainer.accumulate_grad_batches)
    limits = (trainer.max_steps, num_epochs(trainer) * steps)
    return Epoch(
        examples=len(members),
        rows=len(rows),
        tokens=sum(lengths[example] for example in members),
        loss_tokens=int(loss_tokens[members].sum()),
        computed=sum(sizes),
        batches=per_device,
        steps=steps,
        run_steps=min((limit for limit in limits if limit >= 0), default=steps),  # negative: no limit
        packed_fraction=fill_rate(lengths, rows, data.pack_length) if data.packs else None,
    )


def num_epochs(trainer: Trainer) -> int:
    """Epochs of the run; -1 where its steps or its time alone are limited. Without a limit, Lightning makes 1,000."""
    if trainer.max_epochs is not None:
        return trainer.max_epochs
    return -1 if is_timed(trainer) or trainer.max_steps != -1 else 1000


def num_devices(trainer: Trainer) -> int:
    """Devices of the run; the trainer's world size is known only once processes are started."""
    return trainer.num_devices * trainer.num_nodes


def heaviest(sizes: Sequence[int], accumulate: int, run_steps: int) -> list[int]:
    """Micro-batches that need the most memory: the first, the largest of its step, and two later ones in order of size.

    The first step has no optimizer state yet, and its first micro-batch finds no gradients. Later ones differ in size,
    as in training: memory that is freed does not fit the next one.
    """
    first, later = range(1, min(accumulate, len(sizes))), range(accumulate, min(accumulate * run_steps, len(sizes)))
    return [0, *sorted(first, key=sizes.__getitem__)[-1:], *sorted(later, key=sizes.__getitem__)[-2:]]
