"""DPO that looks at single tokens: LDDPO, which discounts those of the longer response, and WPO."""

from dataclasses import dataclass

from torch import Tensor

from smollit.functional.pairs import Pairs
from smollit.losses.base import require
from smollit.losses.dpo import DPO


@dataclass(frozen=True, kw_only=True)
class LDDPO(DPO):
    """DPO whose log p(y | x) counts the tokens after the length of the shorter response with a factor alpha.

    The length-desensitized DPO of https://arxiv.org/abs/2409.06411: log p(y_1..y_L | x) + alpha log p(y_L+1.. | x) of
    policy and reference, where L is the length of the shorter response. `alpha: 1` is DPO.

    Args:
        alpha: Factor of the tokens after L, from 0 to 1.
    """

    alpha: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        require("alpha", self.alpha, at_least=0, at_most=1)

    @property
    def needs_common_length(self) -> bool:
        """Yes."""
        return True

    def formula(self, pairs: Pairs) -> Tensor:
        """DPO of the discounted log-probabilities, [P]."""
        return super().formula(self.discounted(pairs))

    def rewards(self, pairs: Pairs) -> dict[str, Tensor]:
        """The implicit rewards of the discounted log-probabilities."""
        return super().rewards(self.discounted(pairs))

    def discounted(self, pairs: Pairs) -> Pairs:
        """The pairs with alpha x all tokens + (1 - alpha) x the first L tokens."""
        assert pairs.common_policy is not None
        assert pairs.common_reference is not None
        return pairs._replace(
            policy=pairs.common_policy.lerp(pairs.policy, self.alpha),
            reference=pairs.common_reference.lerp(pairs.reference, self.alpha),
        )


@dataclass(frozen=True, kw_only=True)
class WPO(DPO):
    """w(chosen) w(rejected) x DPO, where w(y) = exp(mean_t(log p(y_t) - log sum_v p_v^2)) has no gradient.

    Eq. 2 of https://arxiv.org/abs/2406.11827: pairs that the policy would hardly write itself count less. The loss is
    the mean of the weighted losses, which is not divided by the weights.
    """

    @property
    def needs_relative_logps(self) -> bool:
        """Yes."""
        return True

    def formula(self, pairs: Pairs) -> Tensor:
        """w(chosen) w(rejected) x the loss of DPO, [P]."""
        assert pairs.relative_logps is not None
        return pairs.relative_logps.sum(dim=1).exp() * super().formula(pairs)
