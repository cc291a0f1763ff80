"""Losses without a reference: SimPO, CPO and ORPO. No second model is loaded."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from smollit.functional.pairs import Pairs
from smollit.losses.base import PreferenceLoss, require


@dataclass(frozen=True, kw_only=True)
class ReferenceFreeLoss(PreferenceLoss):
    """A PreferenceLoss that does not read `Pairs.reference`, which is 0."""

    @property
    def needs_reference(self) -> bool:
        """No."""
        return False


@dataclass(frozen=True, kw_only=True)
class CPO(ReferenceFreeLoss):
    """-log sigmoid(beta (log p(chosen) - log p(rejected))) and the NLL of the chosen response.

    Eq. 3 of https://arxiv.org/abs/2401.08417. The rewards are beta log p of each response.
    """

    nll_weight: float = 1.0

    def formula(self, pairs: Pairs) -> Tensor:
        """-log sigmoid(beta (log p_c - log p_r)), [P]; the base adds the NLL."""
        return F.softplus(-self.beta * (pairs.policy[:, 0] - pairs.policy[:, 1]))


@dataclass(frozen=True, kw_only=True)
class PerTokenLoss(ReferenceFreeLoss):
    """A loss of mean log-probabilities per token, which are also its rewards, times beta."""

    def rewards(self, pairs: Pairs) -> dict[str, Tensor]:
        """beta times the mean log-probability per token, {"chosen": [P], "rejected": [P]}, without gradient."""
        chosen, rejected = (self.beta * pairs.policy.detach() / pairs.num_tokens).unbind(dim=1)
        return {"chosen": chosen, "rejected": rejected}


@dataclass(frozen=True, kw_only=True)
class SimPO(PerTokenLoss):
    """-log sigmoid(beta (mean log p(chosen) - mean log p(rejected)) - gamma), with means over tokens.

    Eq. 6 of https://arxiv.org/abs/2405.14734.

    Args:
        gamma: Margin by which the chosen reward must exceed the rejected one.
    """

    beta: float = 2.0
    gamma: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require("gamma", self.gamma, at_least=0)

    def formula(self, pairs: Pairs) -> Tensor:
        """-log sigmoid(beta (mean log p_c - mean log p_r) - gamma), [P]."""
        chosen, rejected = (pairs.policy / pairs.num_tokens).unbind(dim=1)
        return F.softplus(self.gamma - self.beta * (chosen - rejected))


@dataclass(frozen=True, kw_only=True)
class ORPO(PerTokenLoss):
    """The NLL of the chosen response and -beta log sigmoid(log odds ratio), where odds(p) = p / (1 - p).

    Eq. 6 and 7 of https://arxiv.org/abs/2403.07691, whose lambda is beta; p is the geometric mean of the token
    probabilities of a response. The NLL is of the chosen response's tokens, without the prompt's.
    """

    nll_weight: float = 1.0

    def formula(self, pairs: Pairs) -> Tensor:
        """-beta log sigmoid(log odds(p_c) - log odds(p_r)), [P]; the base adds the NLL."""
        means = pairs.policy / pairs.num_tokens
        chosen, rejected = (means - _log_one_minus_exp(means)).unbind(dim=1)
        return self.beta * F.softplus(rejected - chosen)


def _log_one_minus_exp(values: Tensor) -> Tensor:
    """log(1 - e^x) for x below 0, precise near 0; -0.0 is taken as the next smaller number."""
    return torch.log(-torch.expm1(values.clamp(max=-torch.finfo(values.dtype).tiny)))
