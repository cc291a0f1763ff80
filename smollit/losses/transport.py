"""AOT: alignment via optimal transport. The chosen scores dominate the rejected ones as distributions."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from smollit.functional.pairs import Pairs
from smollit.losses.base import PreferenceLoss, require


@dataclass(frozen=True, kw_only=True)
class AOT(PreferenceLoss):
    """-(1 - e) log sigmoid(beta d) - e log sigmoid(-beta d), where d is a difference of sorted values.

    Paired AOT of https://arxiv.org/abs/2406.05882: d_i is the i-th smallest log p(chosen) - log p(rejected) of the
    policy minus the i-th smallest of the reference. A pair has the loss of its own value of the policy. The values of
    a micro-batch are sorted, so the loss depends on how many pairs a micro-batch has: use as many as fit.

    Args:
        label_smoothing: Fraction e of pairs whose labels are assumed to be swapped, from 0 to below 0.5.
    """

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require("label_smoothing", self.label_smoothing, at_least=0, below=0.5)

    @property
    def couples_pairs(self) -> bool:
        """Sorting couples the pairs of a micro-batch."""
        return True

    def formula(self, pairs: Pairs) -> Tensor:
        """(1 - e) softplus(-beta d) + e softplus(beta d), [P]."""
        logit = self.beta * self.differences(pairs)
        return (1 - self.label_smoothing) * F.softplus(-logit) + self.label_smoothing * F.softplus(logit)

    def differences(self, pairs: Pairs) -> Tensor:
        """d, [P]: of each pair, the difference at the rank of its value of the policy."""
        policy, reference = (logps[:, 0] - logps[:, 1] for logps in (pairs.policy, pairs.reference))
        return policy - at_rank_of(policy, reference)


@dataclass(frozen=True, kw_only=True)
class AOTUnpaired(AOT):
    """AOT of unpaired responses: the i-th smallest log-ratio of chosen responses minus that of rejected ones.

    https://arxiv.org/abs/2406.05882; otherwise as AOT. A pair has the loss of its chosen response.
    """

    def differences(self, pairs: Pairs) -> Tensor:
        """d, [P]: of each pair, the difference at the rank of its chosen response."""
        chosen, rejected = pairs.log_ratios.unbind(dim=1)
        return chosen - at_rank_of(chosen, rejected)


def at_rank_of(values: Tensor, others: Tensor) -> Tensor:
    """For each value, [P], the one of `others`, [P], that has the same rank among them, [P]."""
    return others.sort().values[values.argsort().argsort()]
