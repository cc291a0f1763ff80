"""Hinge: the loss of SLiC, with the reference inside the margin."""

from dataclasses import dataclass

import torch
from torch import Tensor

from smollit.functional.pairs import Pairs
from smollit.losses.base import PreferenceLoss


@dataclass(frozen=True, kw_only=True)
class Hinge(PreferenceLoss):
    """max(0, 1 - beta m), where m is the log-ratio of the chosen minus that of the rejected response.

    SLiC-HF, https://arxiv.org/abs/2305.10425, as eq. 3 of https://arxiv.org/abs/2309.06657 writes it with a reference.
    """

    def formula(self, pairs: Pairs) -> Tensor:
        """max(0, 1 - beta m), [P]."""
        return torch.relu(1 - self.beta * pairs.margin)
