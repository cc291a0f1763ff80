"""RunningMean: a total and a count, summed over batches and devices, divided once."""

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection


class RunningMean(Metric):
    """Base of our metrics: `total` / `count`. A NaN that comes in comes out: it is never skipped in silence."""

    full_state_update = False
    is_empty = True  # set by compute(): nothing was counted on any rank
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        # fp64: a sum over millions of tokens keeps its digits.
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def add(self, total: Tensor, count: Tensor | int) -> None:
        """Add a sum and the number of things summed; nothing leaves the device."""
        self.total += total.detach().to(self.total.dtype)
        self.count += count

    def compute(self) -> Tensor:
        """The mean, a scalar; NaN if nothing was counted (`values` leaves such a metric out)."""
        self.is_empty = bool(self.count == 0)
        return self.total / self.count

    def set_dtype(self, dst_type: str | torch.dtype) -> Metric:
        """Keep the sums' own dtype."""
        return self

    def _apply(self, fn: Callable, exclude_state: Sequence[str] = "") -> Metric:  # type: ignore[override]
        # Lightning casts the whole module with `.to(bf16)`, and a count in bf16 ends at 256. Only moves are followed.
        def move(state: Tensor) -> Tensor:
            device = fn(state.float()).device
            return state.to(device, torch.float32 if device.type == "mps" else torch.float64)  # MPS has no fp64

        return super()._apply(move, exclude_state)  # type: ignore[return-value]


def values(collection: MetricCollection) -> dict[str, Tensor]:
    """What a collection has counted so far, by name, and a fresh start; metrics that counted nothing are left out."""
    with warnings.catch_warnings():
        # A rank may have seen no batch; what counted nothing on all ranks is left out below.
        warnings.filterwarnings("ignore", message=".*was called before the ``update`` method.*")
        computed = collection.compute()
    metrics = dict(collection.items(keep_base=False, copy_state=False))
    counted = {name: value.float() for name, value in computed.items() if not metrics[name].is_empty}
    collection.reset()
    return counted


def sums(collection: MetricCollection) -> dict[str, Tensor]:
    """What a collection has counted on this rank, [total, count] by name; nothing leaves the device."""
    return {name: torch.stack([metric.total, metric.count]) for name, metric in _running_means(collection)}


def add_sums(collection: MetricCollection, counted: dict[str, list[float]]) -> None:
    """Add [total, count] by name, as `sums` had them; names that the collection lacks are left alone."""
    for name, metric in _running_means(collection):
        total, count = counted.get(name, (0.0, 0.0))
        metric.total += total
        metric.count += count


def _running_means(collection: MetricCollection) -> list[tuple[str, RunningMean]]:
    metrics = collection.items(keep_base=False, copy_state=False)
    return [(name, metric) for name, metric in metrics if isinstance(metric, RunningMean)]


def add_counts(total: MetricCollection, part: MetricCollection) -> None:
    """Add what `part` has counted to `total`, which holds the same metrics under another prefix."""
    for (_, mine), (_, theirs) in zip(_running_means(total), _running_means(part), strict=True):
        mine.total += theirs.total
        mine.count += theirs.count


class Mean(RunningMean):
    """Mean of all values, [any shape]."""

    def update(self, values: Tensor) -> None:
        """Add values of any shape."""
        self.add(values.sum(dtype=self.total.dtype), values.numel())


class WeightedMean(RunningMean):
    """Mean over tokens, from sums and counts per pair, [B] and [B]."""

    def update(self, sums: Tensor, counts: Tensor) -> None:
        """Add B sums and the numbers of tokens in them."""
        self.add(sums.sum(dtype=self.total.dtype), counts.sum())
