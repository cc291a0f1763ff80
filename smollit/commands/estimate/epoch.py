"""The epoch as the sampler makes it: rows, tokens, optimizer steps, and the batches that need the most memory."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from smollit.batch import Batch
from smollit.data import ChatDataModule
from smollit.data.batching.packing import fill_rate
from smollit.data.batching.sampler import row_length
from smollit.functional.attention import WITHOUT_PADDING, AttentionBackend

Rows = list[list[int]]  # a micro-batch: the examples of each row


@dataclass(frozen=True)
class Epoch:
    """What one epoch has, over all devices.

    Args:
        examples: Chats or pairs.
        rows: Rows, each of one example or of several that are packed.
        tokens: Positions without padding.
        trained: Tokens with a target.
        computed: Positions that the model computes, padding included where the attention backend needs it.
        batches: Micro-batches of each device.
        steps: Optimizer steps.
        run_steps: Optimizer steps of the whole run.
        packed_share: Share of packed rows that holds tokens; None if rows are not packed.
    """

    examples: int
    rows: int
    tokens: int
    trained: int
    computed: int
    batches: int
    steps: int
    run_steps: int
    packed_share: float | None

    @property
    def padding_share(self) -> float:
        """Share of the computed positions that holds no token."""
        return 1 - self.tokens / max(self.computed, 1)


def positions(lengths: Sequence[int], batch: Rows, attention: AttentionBackend) -> int:
    """Positions that the model computes for a micro-batch."""
    sizes = [row_length(lengths, row) for row in batch]
    return sum(sizes) if attention in WITHOUT_PADDING else max(sizes, default=0) * len(sizes)


def describe_epoch(data: ChatDataModule, batches: Sequence[Rows], trainer: Any, attention: AttentionBackend) -> Epoch:
    """Count the first epoch.

    Args:
        data: Set up for `fit`.
        batches: All micro-batches of the epoch, as one device would get them.
        trainer: Says how many devices, micro-batches per step, steps and epochs there are.
        attention: Whether padding is computed.
    """
    sampler, trained = data.sampler(), data.examples["train"].column("loss_tokens")
    rows = [row for batch in batches for row in batch]
    members = [example for row in rows for example in row]
    per_device = _limited(math.ceil(len(batches) / num_devices(trainer)), trainer.limit_train_batches)
    steps = math.ceil(per_device / trainer.accumulate_grad_batches)
    return Epoch(
        examples=len(members),
        rows=len(rows),
        tokens=sum(sampler.lengths[example] for example in members),
        trained=int(trained[members].sum()),
        computed=sum(positions(sampler.lengths, batch, attention) for batch in batches),
        batches=per_device,
        steps=steps,
        run_steps=_run_steps(steps, trainer),
        packed_share=fill_rate(sampler.lengths, rows, data.pack_length) if data.packs else None,
    )


def num_devices(trainer: Any) -> int:
    """Devices of the run; the trainer's world size is known only once processes are started."""
    return int(trainer.num_devices * trainer.num_nodes)


def _limited(batches: int, limit: int | float) -> int:
    """A whole number limits the count, a fraction takes a share: Lightning's rule."""
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)


def _run_steps(steps: int, trainer: Any) -> int:
    """The smaller of `max_steps` and `max_epochs`; -1 and null set no limit."""
    limits = [] if trainer.max_steps < 0 else [trainer.max_steps]
    if trainer.max_epochs is not None and trainer.max_epochs >= 0:
        limits.append(trainer.max_epochs * steps)
    return min(limits, default=steps)


def heaviest(
    lengths: Sequence[int], batches: Sequence[Rows], attention: AttentionBackend, accumulate: int, run_steps: int
) -> tuple[list[Rows], list[Rows]]:
    """The micro-batches that need the most memory: of the first optimizer step, and of all later ones.

    The first step has no optimizer state yet, and its first micro-batch no gradients.
    """

    def by_size(some: Sequence[Rows]) -> list[Rows]:
        return sorted(some, key=lambda batch: -positions(lengths, batch, attention))

    first, rest = batches[:accumulate], batches[accumulate : accumulate * max(run_steps, 1)]
    # One micro-batch without gradients of others, and the heaviest of those that find some.
    return [first[0], *by_size(first[1:])[:1]], by_size(rest)[:1]


def fetch(data: ChatDataModule, rows: Rows, without_model: bool) -> Batch:
    """The batch of these rows, as training gets it; with values in place of those of a reference that has no model."""
    batch = data.collate(data.examples["train"].__getitems__(rows))
    return batch._replace(reference_logps=torch.zeros(len(batch.response_lengths))) if without_model else batch
