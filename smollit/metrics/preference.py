"""Metrics of preference optimization. P is the number of pairs."""

from collections.abc import Mapping
from typing import Literal

from torch import Tensor
from torchmetrics import MetricCollection

from smollit.functional.pairs import Pairs
from smollit.metrics.base import MeanOfSums

Side = Literal["chosen", "rejected"]
SIDES: tuple[Side, ...] = ("chosen", "rejected")  # the columns of a [P, 2] tensor


class PairLoss(MeanOfSums):
    """Weighted mean of the pairs' losses: the objective."""

    higher_is_better = False

    def update(self, losses: Tensor, weights: Tensor) -> None:
        """Add the losses and weights of P pairs, [P] and [P]."""
        self.add((weights * losses).sum(dtype=self.total.dtype), weights.sum(dtype=self.count.dtype))


class RewardAccuracy(MeanOfSums):
    """Fraction of pairs whose chosen reward, [P], is higher than the rejected one, [P].

    A tie counts one half, so that a policy that equals its reference scores 0.5.
    """

    higher_is_better = True

    def update(self, chosen: Tensor, rejected: Tensor) -> None:
        """Add the rewards of P pairs."""
        self.add((chosen > rejected).sum() + (chosen == rejected).sum() / 2, chosen.numel())


class RewardMargin(MeanOfSums):
    """Mean of chosen reward minus rejected reward."""

    higher_is_better = True

    def update(self, chosen: Tensor, rejected: Tensor) -> None:
        """Add the rewards of P pairs, [P] and [P]."""
        self.add_values(chosen - rejected)


class MeanReward(MeanOfSums):
    """Mean implicit reward of the chosen or of the rejected responses."""

    def __init__(self, side: Side) -> None:
        super().__init__()
        self.side = side

    def update(self, chosen: Tensor, rejected: Tensor) -> None:
        """Add the rewards of P pairs, [P] and [P]."""
        self.add_values(chosen if self.side == "chosen" else rejected)


class MeanLogp(MeanOfSums):
    """Mean of log pi(y | x) of the chosen or of the rejected responses."""

    def __init__(self, side: Side) -> None:
        super().__init__()
        self.column = SIDES.index(side)

    def update(self, pairs: Pairs) -> None:
        """Add P pairs."""
        self.add_values(pairs.policy[:, self.column])


class MeanLogit(MeanOfSums):
    """Mean logit over the vocabulary and the loss tokens of the chosen or of the rejected responses."""

    def __init__(self, side: Side) -> None:
        super().__init__()
        self.column = SIDES.index(side)

    def update(self, pairs: Pairs) -> None:
        """Add P pairs."""
        logits, num_tokens = pairs.logits[:, self.column], pairs.num_tokens[:, self.column]
        self.add(logits.sum(dtype=self.total.dtype), num_tokens.sum())


def preference_metrics(prefix: str, more: Mapping[str, MeanOfSums] | None = None) -> MetricCollection:
    """The dashboard of DPO, updated with pairs, losses=[P], weights=[P], chosen=[P] and rejected=[P].

    Args:
        prefix: The stage.
        more: Further metrics, by name.

    Groups stay off: in the first batch all rewards are 0, and torchmetrics would merge metrics that are equal there.
    """
    metrics: dict[str, MeanOfSums] = {
        "loss": PairLoss(),
        "rewards/accuracies": RewardAccuracy(),
        "rewards/margins": RewardMargin(),
    }
    for side in SIDES:
        metrics |= {
            f"rewards/{side}": MeanReward(side),
            f"logps/{side}": MeanLogp(side),
            f"logits/{side}": MeanLogit(side),
        }
    return MetricCollection({**metrics, **(more or {})}, prefix=prefix, compute_groups=False)
