"""Hinge: the loss of SLiC, with the reference inside the margin."""

from dataclasses import dataclass

import torch
from torch import Tensor

from smollit.functional.pairs import Pairs
from smollit.losses.base import PreferenceLoss


@dataclass(frozen=True, kw_only=True)
class Hinge(PreferenceLoss):
    """max(0, 1 - beta m), where m is the log-ratio of the chosen minus that of the rejected response.

    The loss of SLiC-HF, https://arxiv.org/abs/2305.10425, on log-ratios to the reference, as RSO has it,
    https://arxiv.org/abs/2309.06657.
    """

    def formula(self, pairs: Pairs) -> Tensor:
        """max(0, 1 - beta m), [P]."""
        return torch.relu(1 - self.beta * pairs.margin)
