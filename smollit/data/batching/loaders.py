"""Loaders of map-style and of streamed examples, which read the position as late as possible."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader

from smollit.batch import Batch
from smollit.data.batching.collate import unpacked
from smollit.data.batching.dataset import Example, Examples
from smollit.data.batching.documents import Documents
from smollit.data.batching.position import TrainingPosition
from smollit.data.batching.sampler import BatchSampler
from smollit.data.batching.streaming import StreamingExamples

Collate = Callable[[list[list[Example]]], Batch]


class BatchLoader(Iterable[Batch]):
    """Starts its DataLoader at the first `next`, not in `iter()`: a checkpoint may set the position in between.

    It is not a DataLoader itself: Lightning would give it a distributed sampler, and ours deal rows out to the ranks.

    Args:
        make: Makes the DataLoader. It is kept from pass to pass, with its worker processes, unless a pass ends early.
        sampler: Has the length of an epoch; None for a stream, which has no length.
        position: Counts what is handed out; None for evaluation.
    """

    def __init__(
        self,
        make: Callable[[], DataLoader[Any]],
        sampler: BatchSampler | None = None,
        position: TrainingPosition | None = None,
    ) -> None:
        self._make = make
        self._sampler = sampler
        self._position = position
        self._loader: DataLoader[Any] | None = None

    def __len__(self) -> int:
        if self._sampler is None:
            raise TypeError("a stream has no length")
        return len(self._sampler)

    def __iter__(self) -> Iterator[Batch]:
        if self._position is not None:
            self._position.begin_pass()
        if self._loader is None:
            self._loader = self._make()
        try:
            for batch in self._loader:
                if self._position is not None:
                    self._position.handed_out += 1
                yield batch
        except GeneratorExit:
            self._loader = None  # ends its workers, which have prefetched batches that are not used
            raise


def batch_loader(
    examples: Examples | Documents,
    sampler: BatchSampler,
    collate: Collate,
    *,
    num_workers: int,
    seed: int,
    position: TrainingPosition | None = None,
) -> BatchLoader:
    """Batches that a sampler names, as sequences of example numbers."""
    make = partial(
        DataLoader,
        examples,  # fetched by the sequences of a batch, not by one number
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
        # A separate generator: else each pass would draw from the global random state, and a resumed run would differ.
        generator=torch.Generator().manual_seed(seed),
    )
    return BatchLoader(make, sampler, position)


def stream_loader(
    examples: StreamingExamples, collate: Collate, *, num_workers: int, seed: int, position: TrainingPosition
) -> BatchLoader:
    """Batches of the stream. Workers end with the epoch, because they keep the position that they started with."""
    make = partial(
        DataLoader,
        examples,  # its lists of examples become batches
        batch_size=None,
        collate_fn=partial(_collate_one_each, collate),
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(seed),
    )
    return BatchLoader(make, position=position)


def _collate_one_each(collate: Collate, examples: list[Example]) -> Batch:
    """One sequence for each example."""
    return collate(unpacked(examples))
