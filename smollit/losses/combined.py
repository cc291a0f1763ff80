"""Sum: a weighted sum of several preference losses."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from smollit.functional.pairs import Pairs
from smollit.losses.base import PreferenceLoss, require


@dataclass(frozen=True, kw_only=True)
class Sum(PreferenceLoss):
    """sum_k w_k loss_k of each pair, as in MPO, https://arxiv.org/abs/2411.10442.

    Args:
        losses: The losses, each by class with its own arguments.
        weights: The weight w_k of each; null weights each with 1.
        beta: Multiplier of the log-ratios in the reward metrics; the losses have their own.
    """

    losses: Sequence[PreferenceLoss] = field(default_factory=tuple)
    weights: Sequence[float] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.losses:
            raise ValueError("`model.loss.losses` must name at least one loss, got an empty list")
        if self.weights is not None and len(self.weights) != len(self.losses):
            raise ValueError(
                f"`model.loss.weights` must be one number for each of {len(self.losses)} losses, got {self.weights}"
            )
        for weight in self.weights or ():
            require("weights", weight, at_least=0)
        if any(loss.scores == "weight" for loss in self.losses):
            raise ValueError("`scores: weight` weights whole pairs: set `model.loss.scores` of the sum, not of a part")

    @property
    def needs_reference(self) -> bool:
        """Whether any of the losses needs it."""
        return any(loss.needs_reference for loss in self.losses)

    @property
    def couples_pairs(self) -> bool:
        """Whether any of the losses does."""
        return any(loss.couples_pairs for loss in self.losses)

    @property
    def needs_common_length(self) -> bool:
        """Whether any of the losses does."""
        return any(loss.needs_common_length for loss in self.losses)

    @property
    def needs_relative_logps(self) -> bool:
        """Whether any of the losses does."""
        return any(loss.needs_relative_logps for loss in self.losses)

    def formula(self, pairs: Pairs) -> Tensor:
        """sum_k w_k loss_k, [P]."""
        weights = self.weights or [1.0] * len(self.losses)
        parts = [weight * loss(pairs)[0] for weight, loss in zip(weights, self.losses, strict=True)]
        return torch.stack(parts).sum(dim=0)
