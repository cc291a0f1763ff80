"""Which examples make up which batch: a pure function of (lengths, seed, epoch, rank, world size, position)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np
import torch
from torch.utils.data import Sampler

from smollit.data.batching.packing import pack
from smollit.data.batching.position import Position
from smollit.data.encoding.encoder import collector_paused
from smollit.data.sources.mixture import epoch_members

WINDOW = 50  # length grouping sorts this many global batches at a time: enough shuffle, little padding


@dataclass(frozen=True)
class Order:
    """The order of the examples of an epoch.

    Args:
        shuffle: Whether each epoch has a different order.
        seed: Seed of the order.
        group_by_length: Whether the rows of a batch have similar lengths.
        longest_first: The first epoch begins with the longest rows.
        pack_length: Positions of a packed sequence; 0 packs nothing.
        parts: (rows, weight) of each data set that the examples come from; empty: one, each row once.
        repeats: Every epoch is the first one again.
    """

    shuffle: bool = False
    seed: int = 0
    group_by_length: bool = False
    longest_first: bool = False
    pack_length: int = 0
    parts: tuple[tuple[int, float], ...] = field(default=())
    repeats: bool = False


def generator(seed: int, epoch: int) -> torch.Generator:
    """The generator of one epoch, independent of the global random state."""
    return torch.Generator().manual_seed(seed * 1_000_003 + epoch)


def epoch_rows(lengths: Sequence[int], order: Order, epoch: int, group: int) -> list[list[int]]:
    """All rows of one epoch, in their order.

    Args:
        lengths: Positions of every example.
        order: Their order.
        epoch: Counted from 0.
        group: Rows of a global batch, for length grouping and longest first.
    """
    with collector_paused():  # it would traverse all of the lists, again and again
        return _epoch_rows(lengths, order, epoch, group)


def _epoch_rows(lengths: Sequence[int], order: Order, epoch: int, group: int) -> list[list[int]]:
    sizes, weights = zip(*(order.parts or ((len(lengths), 1.0),)), strict=True)
    members = epoch_members(list(sizes), list(weights), seed=order.seed, epoch=epoch)
    random = generator(order.seed, epoch)
    if order.shuffle:
        members = [members[index] for index in torch.randperm(len(members), generator=random).tolist()]
    if order.pack_length:
        rows = pack(lengths, members, order.pack_length)
        if order.shuffle:
            rows = [rows[index] for index in torch.randperm(len(rows), generator=random).tolist()]
    else:
        rows = [[member] for member in members]
    if order.group_by_length:
        rows = grouped(rows, [row_length(lengths, row) for row in rows], group, random if order.shuffle else None)
    if order.longest_first and epoch == 0:
        rows = led_by_longest(rows, [row_length(lengths, row) for row in rows], group)
    return rows


def row_length(lengths: Sequence[int], row: Sequence[int]) -> int:
    """Positions of a row."""
    return lengths[row[0]] if len(row) == 1 else sum(lengths[example] for example in row)


def grouped(
    rows: list[list[int]], row_lengths: Sequence[int], group: int, random: torch.Generator | None
) -> list[list[int]]:
    """Sort windows of `WINDOW` groups by length, then shuffle the groups of each window."""
    result: list[list[int]] = []
    for start in range(0, len(rows), WINDOW * group):
        window = sorted(range(start, min(start + WINDOW * group, len(rows))), key=lambda index: -row_lengths[index])
        groups = [window[first : first + group] for first in range(0, len(window), group)]
        # The last group may be smaller: it stays last, or else all groups after it would begin in the middle.
        whole = len(groups) - (len(groups[-1]) < group)
        places = list(range(whole)) if random is None else torch.randperm(whole, generator=random).tolist()
        result += [rows[index] for place in [*places, *range(whole, len(groups))] for index in groups[place]]
    return result


def led_by_longest(rows: list[list[int]], row_lengths: Sequence[int], count: int) -> list[list[int]]:
    """Move the `count` longest rows to the front; the others stay in their order."""
    longest = np.argsort(-np.asarray(row_lengths, dtype=np.int64), kind="stable")[:count].tolist()
    moved = set(longest)
    return [rows[index] for index in longest] + [row for index, row in enumerate(rows) if index not in moved]


class BatchSampler(Sampler[list[list[int]]]):
    """Batches of one rank, each a list of rows of example numbers: the epoch's rows are split into global batches,
    which are divided among the ranks.

    Every rank has the same number of batches; at the end of an epoch some may be empty, so that no example is seen
    twice, none is left out, and no rank waits for another. Starts at `position`, and its length is that of the whole
    epoch: Lightning itself counts the batches that were done before a resume.

    Args:
        lengths: Positions of every example.
        batch_size: Maximum number of rows per batch and rank.
        order: The order of the examples.
        max_batch_tokens: Maximum number of positions per batch and rank, padding included; 0 sets no limit.
        rows_per_step: Rows of an optimizer step over all ranks, for which the order is made, so that it does not depend
            on the number of ranks; 0 takes those of a micro-batch over all ranks.
        rank: Rank of this process.
        world_size: Number of processes.
        position: Epoch and rows done; read when an epoch begins.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        *,
        order: Order | None = None,
        max_batch_tokens: int = 0,
        rows_per_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
        position: Position | None = None,
    ) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.order = order or Order()
        self.max_batch_tokens = max_batch_tokens
        self.rows_per_step = rows_per_step
        self.rank = rank
        self.world_size = world_size
        self.position = position or Position()
        self._rows: tuple[tuple[int, int], list[list[int]]] | None = None  # of the epoch that was requested last
        self._ends: tuple[tuple[int, int], list[int]] | None = None  # rows done after each batch of the current pass
        self._num_batches: dict[tuple[int, int], int] = {}  # by epoch and group

    @property
    def global_batch_size(self) -> int:
        """Maximum number of rows per micro-batch over all ranks."""
        return self.batch_size * self.world_size

    @property
    def group(self) -> int:
        """Global batch size that the order is made for."""
        return self.position.group or self.rows_per_step or self.global_batch_size

    @property
    def epochs_differ(self) -> bool:
        """Whether epochs may have different numbers of batches."""
        # Packing the same examples in another order gives as many rows.
        other_examples = any(weight % 1 for _, weight in self.order.parts)
        return bool(self.max_batch_tokens or (self.order.pack_length and other_examples))

    def num_batches(self, epoch: int) -> int:
        """Batches of a whole epoch."""
        key = (epoch, self.group)
        if key not in self._num_batches:
            self._num_batches[key] = len(self.sizes(0, epoch))
        return self._num_batches[key]

    def num_rows(self) -> int:
        """Rows of the current epoch."""
        return len(self.rows())

    def batches_before(self) -> int:
        """Batches of the epoch before `position`."""
        return self.num_batches(self.position.epoch) - (len(self._row_ends()) - 1)

    def rows_after(self, num_batches: int) -> int:
        """Rows of the epoch that are done after so many batches from `position` on."""
        ends = self._row_ends()
        return ends[min(num_batches, len(ends) - 1)]

    def _row_ends(self) -> list[int]:
        """Rows done at `position`, and after each batch from there to the end of the epoch."""
        key = (self.position.epoch, self.position.rows)
        if self._ends is None or self._ends[0] != key:
            self._ends = key, list(accumulate(self.sizes(key[1]), initial=key[1]))
        return self._ends[1]

    def rows(self, epoch: int | None = None) -> list[list[int]]:
        """All rows of an epoch, by default of the current one."""
        epoch = self.position.epoch if epoch is None else epoch
        epoch = 0 if self.order.repeats else epoch
        if self._rows is None or self._rows[0] != (epoch, self.group):
            self._rows = (epoch, self.group), epoch_rows(self.lengths, self.order, epoch, self.group)
        return self._rows[1]

    def sizes(self, start: int, epoch: int | None = None) -> list[int]:
        """Rows of each global batch from row `start` of an epoch on."""
        rows = self.rows(epoch)
        if not self.max_batch_tokens:
            count = self.global_batch_size
            return [min(count, len(rows) - first) for first in range(start, len(rows), count)]
        sizes = []
        while start < len(rows):
            size = sum(self._rows_per_rank(rows, start))
            sizes.append(size)
            start += size
        return sizes

    def _rows_per_rank(self, rows: list[list[int]], start: int) -> list[int]:
        """How many rows from `start` on each rank takes of one global batch, within `max_batch_tokens`."""
        rows_per_rank = []
        for _ in range(self.world_size):
            longest = share = 0
            while start < len(rows) and share < self.batch_size:
                longest = max(longest, row_length(self.lengths, rows[start]))
                if share and longest * (share + 1) > self.max_batch_tokens:
                    break
                share, start = share + 1, start + 1
            rows_per_rank.append(share)
        return rows_per_rank

    def __len__(self) -> int:
        return self.num_batches(self.position.epoch)

    def __iter__(self) -> Iterator[list[list[int]]]:
        rows, start = self.rows(), self.position.rows
        while start < len(rows):
            if self.max_batch_tokens:
                rows_per_rank = self._rows_per_rank(rows, start)
                first = start + sum(rows_per_rank[: self.rank])
                yield rows[first : first + rows_per_rank[self.rank]]
                start += sum(rows_per_rank)
            else:
                yield rows[start : start + self.global_batch_size][self.rank :: self.world_size]
                start += self.global_batch_size
