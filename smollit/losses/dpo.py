"""DPO, the negative log-likelihood that the chosen response is preferred, and its forms for labels that are noisy."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from smollit.functional.pairs import Pairs
from smollit.losses.base import PreferenceLoss, require


@dataclass(frozen=True, kw_only=True)
class DPO(PreferenceLoss):
    """-log sigmoid(beta m), where m is the log-ratio of the chosen minus that of the rejected response.

    Eq. 7 of https://arxiv.org/abs/2305.18290. With `label_smoothing` e it is the conservative DPO of eq. 3 of
    https://ericmitchell.ai/cdpo.pdf: -(1 - e) log sigmoid(beta m) - e log sigmoid(-beta m). With `scores: offset`,
    beta m - d replaces beta m, where d is the scaled score gap: the DPO with an offset (ODPO) of
    https://arxiv.org/abs/2402.10571.

    Args:
        label_smoothing: Fraction of pairs whose labels are assumed to be swapped, from 0 to below 0.5.
        scores: Use of the score gap, score_chosen - score_rejected: `ignore`; `weight` to weight each pair with
            `score_scale` times its gap, and with 0 where the gap is negative; `offset` to require a margin of
            `score_scale` times the gap.
    """

    label_smoothing: float = 0.0
    scores: Literal["ignore", "weight", "offset"] = "ignore"  # type: ignore[assignment]  # one value more than the base

    def __post_init__(self) -> None:
        super().__post_init__()
        require("label_smoothing", self.label_smoothing, at_least=0, below=0.5)

    def formula(self, pairs: Pairs) -> Tensor:
        """-(1 - e) log sigmoid(beta m - d) - e log sigmoid(-(beta m - d)), [P]."""
        offset = self.scaled_gaps(pairs) if self.scores == "offset" else 0.0
        logit = self.beta * pairs.margin - offset
        # -log sigmoid(x) = softplus(-x), which stays finite for every x.
        return (1 - self.label_smoothing) * F.softplus(-logit) + self.label_smoothing * F.softplus(logit)


@dataclass(frozen=True, kw_only=True)
class Robust(PreferenceLoss):
    """(-(1 - e) log sigmoid(beta m) + e log sigmoid(-beta m)) / (1 - 2e): the robust DPO (rDPO).

    https://arxiv.org/abs/2403.00409. Its mean over labels that are swapped with probability e is the DPO loss
    of the clean labels. The loss of a single pair can be negative.

    Args:
        label_smoothing: The probability e that a label is swapped, from 0 to below 0.5.
    """

    label_smoothing: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        require("label_smoothing", self.label_smoothing, at_least=0, below=0.5)

    def formula(self, pairs: Pairs) -> Tensor:
        """((1 - e) softplus(-beta m) - e softplus(beta m)) / (1 - 2e), [P]."""
        logit, e = self.beta * pairs.margin, self.label_smoothing
        return ((1 - e) * F.softplus(-logit) - e * F.softplus(logit)) / (1 - 2 * e)


@dataclass(frozen=True, kw_only=True)
class EXO(PreferenceLoss):
    """KL(q || p) of q = (sigmoid(beta m), sigmoid(-beta m)) to the smoothed labels p = (1 - e, e).

    Eq. 16 of https://arxiv.org/abs/2402.00856, for two responses: the reverse direction of the divergence in DPO.

    Args:
        label_smoothing: Probability e of the rejected response in the labels, above 0 and below 0.5.
    """

    label_smoothing: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        require("label_smoothing", self.label_smoothing, above=0, below=0.5)

    def formula(self, pairs: Pairs) -> Tensor:
        """q_c (log q_c - log(1 - e)) + q_r (log q_r - log e), [P]."""
        logit, e = self.beta * pairs.margin, self.label_smoothing
        chosen = torch.sigmoid(logit) * (F.logsigmoid(logit) - math.log1p(-e))
        rejected = torch.sigmoid(-logit) * (F.logsigmoid(-logit) - math.log(e))
        return chosen + rejected
