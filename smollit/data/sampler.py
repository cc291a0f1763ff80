"""Which examples make up which batch: a pure function of (number of examples, seed, epoch, rank, world size)."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.utils.data import Sampler


@dataclass
class Position:
    """Where a run stands in its data: `rows` of epoch `epoch` are done, counted over all ranks."""

    epoch: int = 0
    rows: int = 0


def epoch_order(num_examples: int, seed: int, epoch: int, shuffle: bool) -> list[int]:
    """The order of one epoch, from a generator of its own: the global random state has no part in it."""
    if not shuffle:
        return list(range(num_examples))
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(num_examples, generator=generator).tolist()


class BatchSampler(Sampler[list[int]]):
    """Batches of one rank: the global batch is cut from the epoch's order, and dealt out to the ranks.

    Every rank has the same number of batches; at the end of an epoch some may be empty, so that no example is seen
    twice, none is left out, and no rank waits for another. Starts at `position`, and its length is that of the whole
    epoch: Lightning counts the batches that were done before a resume by itself.

    Args:
        num_examples: Size of the data set.
        batch_size: Examples per batch and rank.
        shuffle: Whether each epoch has an order of its own.
        seed: Of the order.
        rank: This process.
        world_size: Number of processes.
        position: Epoch and rows done; read when an epoch begins.
    """

    def __init__(
        self,
        num_examples: int,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        position: Position | None = None,
    ) -> None:
        self.num_examples = num_examples
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.position = position or Position()

    @property
    def global_batch_size(self) -> int:
        """Examples per micro-batch over all ranks."""
        return self.batch_size * self.world_size

    def __len__(self) -> int:
        return -(-self.num_examples // self.global_batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = epoch_order(self.num_examples, self.seed, self.position.epoch, self.shuffle)
        for start in range(self.position.rows, self.num_examples, self.global_batch_size):
            yield order[start : start + self.global_batch_size][self.rank :: self.world_size]
