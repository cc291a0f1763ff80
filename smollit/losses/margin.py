"""Other functions of the margin than DPO's logistic one: Hinge, IPO, DiscoPOP, and DPO per token (LNDPO)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from smollit.functional.pairs import Pairs
from smollit.losses.base import PreferenceLoss, require


@dataclass(frozen=True, kw_only=True)
class Hinge(PreferenceLoss):
    """max(0, 1 - beta m), where m is the log-ratio of the chosen minus that of the rejected response.

    The loss of SLiC-HF, https://arxiv.org/abs/2305.10425, on log-ratios to the reference, as RSO has it,
    https://arxiv.org/abs/2309.06657.
    """

    def formula(self, pairs: Pairs) -> Tensor:
        """max(0, 1 - beta m), [P]."""
        return torch.relu(1 - self.beta * pairs.margin)


@dataclass(frozen=True, kw_only=True)
class IPO(PreferenceLoss):
    """(h - 1 / (2 beta))^2, where h is the log-ratio of the chosen minus that of the rejected response.

    Eq. 17 of https://arxiv.org/abs/2310.12036. Each log-ratio is a mean over the response's tokens here, so that the
    target does not depend on the lengths of the responses.
    """

    def formula(self, pairs: Pairs) -> Tensor:
        """(h - 1 / (2 beta))^2, [P]."""
        return (pairs.margin_per_token - 1 / (2 * self.beta)).square()


@dataclass(frozen=True, kw_only=True)
class LNDPO(PreferenceLoss):
    """-log sigmoid(beta h), where h is the margin of log-ratios per token: the length-normalized DPO.

    The loss of Tulu 3, https://arxiv.org/abs/2411.15124. A mean over the tokens is much smaller than their sum, so beta
    is larger than in DPO.
    """

    beta: float = 5.0

    def formula(self, pairs: Pairs) -> Tensor:
        """-log sigmoid(beta h), [P]."""
        return F.softplus(-self.beta * pairs.margin_per_token)


@dataclass(frozen=True, kw_only=True)
class DiscoPOP(PreferenceLoss):
    """(1 - w) (-log sigmoid(x)) + w exp(-x), where x = beta m and w = sigmoid(x / tau).

    The log-ratio modulated loss that a language model discovered: eq. 5 of https://arxiv.org/abs/2406.08414.

    Args:
        tau: Temperature of the blend between the logistic and the exponential loss.
    """

    beta: float = 0.05
    tau: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        require("tau", self.tau, above=0)

    def formula(self, pairs: Pairs) -> Tensor:
        """(1 - w) softplus(-x) + w exp(-x), [P]."""
        logit = self.beta * pairs.margin
        blend = torch.sigmoid(logit / self.tau)
        # exp(-x) is finite where it counts: w is 0 where -x is large.
        return (1 - blend) * F.softplus(-logit) + torch.exp(F.logsigmoid(logit / self.tau) - logit)
