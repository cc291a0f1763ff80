"""FDPO: DPO under another divergence between policy and reference than the reverse KL."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from smollit.functional.pairs import Pairs
from smollit.losses.base import PreferenceLoss, require

LARGEST_EXPONENT = 80.0  # exp(88) is the limit of fp32


@dataclass(frozen=True, kw_only=True)
class FDPO(PreferenceLoss):
    """-log sigmoid(beta (g(a) - g(b))), where a and b are the log-ratios, and g(u) = f'(e^u) of a divergence f.

    https://arxiv.org/abs/2309.16240. The forward KL has g(u) = 1 - e^-u, the Jensen-Shannon
    divergence g(u) = log 2 + log sigmoid(u), and the alpha-divergence g(u) = (e^((alpha - 1) u) - 1) / (alpha - 1).
    The reverse KL, g(u) = u, is DPO itself. The reward metrics stay those of DPO.

    Args:
        divergence: `forward_kl`, `js` (Jensen-Shannon) or `alpha`.
        alpha: Coefficient of the alpha-divergence, above 0 and below 1; only for `alpha`.
    """

    divergence: Literal["forward_kl", "js", "alpha"] = "forward_kl"
    alpha: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        require("alpha", self.alpha, above=0, below=1)

    def formula(self, pairs: Pairs) -> Tensor:
        """-log sigmoid(beta (g(a) - g(b))), [P]."""
        chosen, rejected = self.derivative(pairs.log_ratios).unbind(dim=1)
        return F.softplus(-self.beta * (chosen - rejected))

    def derivative(self, log_ratios: Tensor) -> Tensor:
        """g(u) = f'(e^u) of each log-ratio, in the same shape."""
        if self.divergence == "js":
            return math.log(2) + F.logsigmoid(log_ratios)
        power = -1.0 if self.divergence == "forward_kl" else self.alpha - 1
        # The forward KL is the alpha-divergence of alpha 0: (e^-u - 1) / -1.
        return (torch.exp((power * log_ratios).clamp(max=LARGEST_EXPONENT)) - 1) / power
