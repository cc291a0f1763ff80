"""What validation says about pairs besides the dashboard: as sums and counts, so exact over any batches and devices."""

from abc import abstractmethod

import torch
from torch import Tensor

from smollit.functional.pairs import Pairs
from smollit.metrics.base import MeanOfSums
from smollit.metrics.preference import SIDES, Side

QUANTILES = (10, 50, 90)  # percent
SMALL_GAP, LARGE_GAP = 1.0, 2.0  # of scores from 1 to 10, as UltraFeedback has them
# Bins of rewards: equally wide in asinh(reward / FINEST), so that each is 1 % wide, or FINEST / 100 near 0.
FINEST, WIDTH, NUM_BINS = 1e-3, 0.01, 4001


class LogRatioPerToken(MeanOfSums):
    """Mean of log pi(token) - log pi_ref(token) over the tokens of the chosen or of the rejected responses, in nats.

    Over responses that the policy samples, this is the KL divergence of the policy to its reference per token
    (estimator k1 of http://joschu.net/blog/kl-approx.html). The responses are those of the data, so it is an estimate
    of how far the policy has moved on them, and is negative where they have become less likely.
    """

    def __init__(self, side: Side) -> None:
        super().__init__()
        self.column = SIDES.index(side)

    def update(self, pairs: Pairs) -> None:
        """Add P pairs."""
        ratios, num_tokens = pairs.log_ratios[:, self.column], pairs.num_tokens[:, self.column]
        self.add(ratios.detach().sum(dtype=self.total.dtype), num_tokens.sum())


class PolicyEntropy(MeanOfSums):
    """Mean entropy of the policy over the tokens of the chosen or of the rejected responses, in nats."""

    def __init__(self, side: Side) -> None:
        super().__init__()
        self.column = SIDES.index(side)

    def update(self, pairs: Pairs) -> None:
        """Add P pairs; a module of one's own may leave the entropies out."""
        if pairs.entropies is not None:
            sums, num_tokens = pairs.entropies[:, self.column], pairs.num_tokens[:, self.column]
            self.add(sums.sum(dtype=self.total.dtype), num_tokens.sum())


class RewardQuantile(MeanOfSums):
    """A quantile of the rewards of the chosen or of the rejected responses.

    Args:
        side: Which responses.
        percent: 50 is the median.
    """

    def __init__(self, side: Side, percent: int) -> None:
        super().__init__((NUM_BINS,))
        self.side = side
        self.percent = percent

    def update(self, chosen: Tensor, rejected: Tensor) -> None:
        """Count the rewards of P pairs, [P] and [P], in their bins. NaN is counted, so that it shows."""
        rewards = chosen if self.side == "chosen" else rejected
        place = torch.asinh(rewards.to(self.total.dtype) / FINEST) / WIDTH + NUM_BINS // 2
        index = place.nan_to_num(nan=0.0).round().clamp(0, NUM_BINS - 1).long()
        self.total.index_add_(0, index, torch.where(rewards.isnan(), torch.nan, 1.0).to(self.total))
        self.count += rewards.numel()

    def compute(self) -> Tensor:
        """The reward in whose bin the quantile lies, a scalar."""
        super().compute()  # notes whether anything was counted
        # Whole numbers, since fractions do not add up: nine times 0.1 is less than 0.9.
        cumulative = self.total.cumsum(0)
        index = torch.searchsorted(cumulative, self.percent * self.count / 100)
        middle = torch.sinh((index.to(cumulative) - NUM_BINS // 2) * WIDTH) * FINEST
        return torch.where(cumulative[-1].isnan(), torch.nan, middle)


class SubsetAccuracy(MeanOfSums):
    """Fraction of the pairs of a subset whose chosen reward is the higher one; a tie counts one half."""

    higher_is_better = True

    @abstractmethod
    def subset(self, pairs: Pairs) -> Tensor:
        """Which pairs count, [P] bool."""

    def update(self, pairs: Pairs, chosen: Tensor, rejected: Tensor) -> None:
        """Add the pairs of the subset."""
        points = (chosen > rejected) + (chosen == rejected) / 2
        is_in = self.subset(pairs)
        self.add((points * is_in).sum(), is_in.sum())


class LengthAccuracy(SubsetAccuracy):
    """Accuracy where the chosen response has more tokens than the rejected one, or fewer.

    Args:
        longer: The side with more tokens.
    """

    def __init__(self, longer: Side) -> None:
        super().__init__()
        self.longer = longer

    def subset(self, pairs: Pairs) -> Tensor:
        """Pairs whose responses have different lengths, in this direction."""
        chosen, rejected = pairs.num_tokens.unbind(dim=1)
        return chosen > rejected if self.longer == "chosen" else chosen < rejected


class ScoreGapAccuracy(SubsetAccuracy):
    """Accuracy where the score gap of the data is at least `low` and less than `high`."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high

    def subset(self, pairs: Pairs) -> Tensor:
        """Pairs that have scores, with a gap in this range."""
        if pairs.score_gap is None:
            return torch.zeros_like(pairs.policy[:, 0], dtype=torch.bool)
        return (pairs.score_gap >= self.low) & (pairs.score_gap < self.high)


class ScoreAgreement(MeanOfSums):
    """Fraction of pairs whose margin has the sign of the score gap; equal scores are left out, a tie counts one half.

    It differs from the accuracy where the rejected response has the higher score.
    """

    higher_is_better = True

    def update(self, pairs: Pairs, chosen: Tensor, rejected: Tensor) -> None:
        """Add the pairs that have different scores."""
        if pairs.score_gap is None:
            return
        agreement = torch.sign(chosen - rejected) * torch.sign(pairs.score_gap)  # 1, 0 or -1
        has_gap = pairs.score_gap != 0
        self.add(((agreement + 1) / 2 * has_gap).sum(), has_gap.sum())


def pair_diagnostics() -> dict[str, MeanOfSums]:
    """The diagnostics by name: docs/metrics.md explains each."""
    found: dict[str, MeanOfSums] = {
        "rewards/accuracies_chosen_longer": LengthAccuracy("chosen"),
        "rewards/accuracies_chosen_shorter": LengthAccuracy("rejected"),
        "rewards/accuracies_small_gap": ScoreGapAccuracy(-torch.inf, SMALL_GAP),
        "rewards/accuracies_medium_gap": ScoreGapAccuracy(SMALL_GAP, LARGE_GAP),
        "rewards/accuracies_large_gap": ScoreGapAccuracy(LARGE_GAP, torch.inf),
        "rewards/score_agreement": ScoreAgreement(),
    }
    for side in SIDES:
        found[f"kl_estimate/{side}"] = LogRatioPerToken(side)
        found[f"entropy/{side}"] = PolicyEntropy(side)
        found |= {f"rewards/{side}_p{percent}": RewardQuantile(side, percent) for percent in QUANTILES}
    return found
