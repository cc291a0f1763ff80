"""DataLoaders of map-style and of streamed examples."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader

from smollit.batch import Batch
from smollit.data.batching.collate import unpacked
from smollit.data.batching.dataset import Examples
from smollit.data.batching.sampler import BatchSampler
from smollit.data.batching.streaming import StreamingExamples

Collate = Callable[[list[list[dict[str, Any]]]], Batch]


def batch_loader(
    examples: Examples, sampler: BatchSampler, collate: Collate, num_workers: int, seed: int
) -> DataLoader[Batch]:
    """Batches that a sampler names, as rows of example numbers."""
    return DataLoader(
        examples,  # type: ignore[arg-type]  # fetched by rows of examples, not by one number
        batch_sampler=sampler,  # type: ignore[arg-type]
        collate_fn=collate,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
        # Of its own: else each pass would draw from the global random state, and a resumed run would differ.
        generator=torch.Generator().manual_seed(seed),
    )


def stream_loader(examples: StreamingExamples, collate: Collate, num_workers: int, seed: int) -> DataLoader[Batch]:
    """Batches as the stream makes them. Workers end with the epoch: they keep the position they began with."""
    return DataLoader(
        examples,  # type: ignore[arg-type]  # its lists of examples become batches
        batch_size=None,
        collate_fn=partial(_collate_one_each, collate),
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(seed),
    )


def _collate_one_each(collate: Collate, examples: list[dict[str, Any]]) -> Batch:
    """A row for each example."""
    return collate(unpacked(examples))
