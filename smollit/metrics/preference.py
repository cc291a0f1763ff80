"""Metrics of preference optimisation. B is the number of pairs."""

from torch import Tensor
from torchmetrics import MetricCollection

from smollit.metrics.base import Mean, RunningMean, WeightedMean


class RewardAccuracy(RunningMean):
    """Share of pairs whose chosen reward, [B], beats the rejected one, [B].

    A tie counts one half, so that a policy equal to its reference, which knows nothing, scores 0.5.
    """

    higher_is_better = True

    def update(self, chosen: Tensor, rejected: Tensor) -> None:
        """Add B pairs of rewards."""
        self.add((chosen > rejected).sum() + (chosen == rejected).sum() / 2, chosen.numel())


class RewardMargin(RunningMean):
    """Mean of chosen reward minus rejected reward, each [B]."""

    higher_is_better = True

    def update(self, chosen: Tensor, rejected: Tensor) -> None:
        """Add B pairs of rewards."""
        self.add((chosen - rejected).sum(dtype=self.total.dtype), chosen.numel())


MEANS = (
    "loss",
    "rewards/chosen",
    "rewards/rejected",
    "logps/chosen",
    "logps/rejected",
)


def preference_metrics(prefix: str) -> MetricCollection:
    """The dashboard of DPO: a mean over pairs under each name of `MEANS`, over tokens under `logits/*`,
    and `rewards/accuracies` and `rewards/margins`.

    Groups stay off: in the first batch all rewards are 0, and torchmetrics would merge metrics that are equal there.
    """
    metrics: dict[str, RunningMean] = {name: Mean() for name in MEANS}
    metrics |= {"logits/chosen": WeightedMean(), "logits/rejected": WeightedMean()}
    metrics |= {"rewards/accuracies": RewardAccuracy(), "rewards/margins": RewardMargin()}
    return MetricCollection(dict(metrics), prefix=prefix, compute_groups=False)
