"""MeanOfSums: a total and a count, summed over batches and devices, divided once."""

import warnings
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection


class MeanOfSums(Metric):
    """Base of all metrics: `total` / `count`. A NaN is never skipped: the mean is NaN then.

    Args:
        size: Of `total`, which is one number unless a metric counts several things at once.
    """

    full_state_update = False
    is_empty = True  # set by compute(): no rank has counted anything
    total: Tensor
    count: Tensor

    def __init__(self, size: tuple[int, ...] = ()) -> None:
        super().__init__()
        # fp64: a sum over millions of tokens keeps its precision.
        self.add_state("total", torch.zeros(size, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def add(self, total: Tensor, count: Tensor | int) -> None:
        """Add a sum and the number of summands, or their total weight, without device synchronization."""
        self.total += total.detach().to(self.total.dtype)
        self.count += count.detach() if isinstance(count, Tensor) else count

    def add_values(self, values: Tensor) -> None:
        """Add values of any shape."""
        self.add(values.sum(dtype=self.total.dtype), values.numel())

    def compute(self) -> Tensor:
        """The mean, a scalar; NaN if nothing was counted (`values` leaves such a metric out)."""
        self.is_empty = bool(self.count == 0)
        return self.total / self.count

    def set_dtype(self, dst_type: str | torch.dtype) -> Metric:
        """Keep the sums' own dtype."""
        return self

    def _apply(self, fn: Callable, exclude_state: Sequence[str] = "") -> Metric:
        # Lightning casts the whole module with `.to(bf16)`, which torchmetrics allows: a count in bf16 stops at 256.
        # There is no public hook for a cast, so the dtype is kept here.
        def move(state: Tensor) -> Tensor:
            device = fn(state.float()).device
            if device.type == "mps":  # it has no fp64
                return state.float().to(device)
            return state.to(device, torch.float64)

        return super()._apply(move, exclude_state)  # type: ignore[return-value]


def values(collection: MetricCollection) -> dict[str, Tensor]:
    """Compute a collection's metrics by name, and reset it; metrics that have counted nothing are left out."""
    with warnings.catch_warnings():
        # A rank may have had no batch; what no rank has counted is left out below.
        warnings.filterwarnings("ignore", message=".*was called before the ``update`` method.*")
        computed = collection.compute()
    metrics = dict(collection.items(keep_base=False, copy_state=False))
    counted = {name: value.float() for name, value in computed.items() if not metrics[name].is_empty}
    with torch.inference_mode(False):  # `validate` and `test` are in that mode, and training can't add to its tensors
        collection.reset()
    return counted


def sums(collection: MetricCollection) -> dict[str, Tensor]:
    """[total, count] of each metric on this rank, by name, without device synchronization."""
    return {name: torch.stack([metric.total, metric.count]) for name, metric in _means(collection)}


def add_sums(collection: MetricCollection, counted: Mapping[str, Sequence[float] | Tensor]) -> None:
    """Add [total, count] to each metric, by name, as `sums` returns them; unknown names are ignored."""
    for name, metric in _means(collection):
        if name in counted:
            metric.total += counted[name][0]
            metric.count += counted[name][1]


def add_collection(total: MetricCollection, part: MetricCollection) -> None:
    """Add what `part` has counted to `total`, which holds the same metrics under another prefix."""
    for (_, mine), (_, theirs) in zip(_means(total), _means(part), strict=True):
        mine.total += theirs.total
        mine.count += theirs.count


def _means(collection: MetricCollection) -> list[tuple[str, MeanOfSums]]:
    metrics = collection.items(keep_base=False, copy_state=False)
    return [(name, metric) for name, metric in metrics if isinstance(metric, MeanOfSums)]
