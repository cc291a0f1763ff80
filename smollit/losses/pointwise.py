"""Losses that move each response by itself against the reference: NCA, BCO, SPPO, APOZero, APODown.

a and b are the log-ratios of the chosen and of the rejected response.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from smollit.functional.pairs import Pairs
from smollit.losses.base import PreferenceLoss


@dataclass(frozen=True, kw_only=True)
class NCA(PreferenceLoss):
    """-log sigmoid(beta a) - 1/2 log sigmoid(-beta a) - 1/2 log sigmoid(-beta b): noise contrastive alignment.

    https://arxiv.org/abs/2402.05369, for two responses. It keeps the likelihood of the chosen response up.
    """

    def formula(self, pairs: Pairs) -> Tensor:
        """softplus(-beta a) + softplus(beta a) / 2 + softplus(beta b) / 2, [P]."""
        chosen, rejected = (self.beta * pairs.log_ratios).unbind(dim=1)
        return F.softplus(-chosen) + F.softplus(chosen) / 2 + F.softplus(rejected) / 2


@dataclass(frozen=True, kw_only=True)
class BCO(PreferenceLoss):
    """-log sigmoid(beta a) - log sigmoid(-beta b): a binary classifier of chosen and rejected responses.

    https://arxiv.org/abs/2404.04656, without the moving average of rewards as shift.
    """

    def formula(self, pairs: Pairs) -> Tensor:
        """softplus(-beta a) + softplus(beta b), [P]."""
        chosen, rejected = (self.beta * pairs.log_ratios).unbind(dim=1)
        return F.softplus(-chosen) + F.softplus(rejected)


@dataclass(frozen=True, kw_only=True)
class SPPO(PreferenceLoss):
    """(a - 1 / (2 beta))^2 + (b + 1 / (2 beta))^2: self-play preference optimization with hard labels.

    Eq. 4.7 of https://arxiv.org/abs/2405.00675 with a probability of 1 that the chosen response wins.
    """

    def formula(self, pairs: Pairs) -> Tensor:
        """(a - 1 / (2 beta))^2 + (b + 1 / (2 beta))^2, [P]."""
        chosen, rejected = pairs.log_ratios.unbind(dim=1)
        target = 1 / (2 * self.beta)
        return (chosen - target).square() + (rejected + target).square()


@dataclass(frozen=True, kw_only=True)
class APOZero(PreferenceLoss):
    """1 - sigmoid(beta a) + sigmoid(beta b): raises the chosen and lowers the rejected response.

    Eq. 7 of https://arxiv.org/abs/2408.06266: for data whose chosen responses are better than the model's own.
    """

    def formula(self, pairs: Pairs) -> Tensor:
        """sigmoid(-beta a) + sigmoid(beta b), [P]."""
        chosen, rejected = (self.beta * pairs.log_ratios).unbind(dim=1)
        return torch.sigmoid(-chosen) + torch.sigmoid(rejected)


@dataclass(frozen=True, kw_only=True)
class APODown(PreferenceLoss):
    """sigmoid(beta a) + 1 - sigmoid(beta (a - b)): lowers both responses, the rejected one more.

    Eq. 8 of https://arxiv.org/abs/2408.06266: for data whose chosen responses are worse than the model's own.
    """

    def formula(self, pairs: Pairs) -> Tensor:
        """sigmoid(beta a) + sigmoid(-beta (a - b)), [P]."""
        return torch.sigmoid(self.beta * pairs.log_ratios[:, 0]) + torch.sigmoid(-self.beta * pairs.margin)
