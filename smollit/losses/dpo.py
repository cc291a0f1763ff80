"""DPO: the negative log-likelihood that the chosen response is preferred."""

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from smollit.functional.pairs import Pairs
from smollit.losses.base import PreferenceLoss


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
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(
                f"`model.loss.label_smoothing` must be at least 0 and below 0.5, got {self.label_smoothing}"
            )

    def formula(self, pairs: Pairs) -> Tensor:
        """-(1 - e) log sigmoid(beta m - d) - e log sigmoid(-(beta m - d)), [P]."""
        offset = self.scaled_gaps(pairs) if self.scores == "offset" else 0.0
        logit = self.beta * pairs.margin - offset
        # -log sigmoid(x) = softplus(-x), which stays finite for every x.
        return (1 - self.label_smoothing) * F.softplus(-logit) + self.label_smoothing * F.softplus(logit)
