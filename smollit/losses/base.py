"""Base classes of the losses: PreferenceLoss for the DPO family, CompletionLoss for the SFT family."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from smollit.functional.pairs import Pairs, implicit_rewards
from smollit.functional.scores import TokenScores


@dataclass(frozen=True, kw_only=True)
class PreferenceLoss(ABC):
    """A loss per preference pair, [P], and a weight per pair, [P].

    A subclass is a frozen dataclass that adds its own arguments and `formula`. It has no state.

    Args:
        beta: Strength of the constraint that keeps the policy close to the reference; higher keeps it closer.
        nll_weight: Weight of the negative log-likelihood per token of the chosen response, which is added to the
            loss as in RPO, https://arxiv.org/abs/2404.19733.
        scores: Use of the score gap, score_chosen - score_rejected: `ignore`, or `weight` to weight each pair with
            `score_scale` times its gap, and with 0 where the gap is negative.
        score_scale: Multiplier for the score gap.
    """

    beta: float = 0.1
    nll_weight: float = 0.0
    scores: Literal["ignore", "weight"] = "ignore"
    score_scale: float = 1.0

    def __post_init__(self) -> None:
        require("beta", self.beta, above=0)
        require("nll_weight", self.nll_weight, at_least=0)
        require("score_scale", self.score_scale, above=0)
        if self.scores == "ignore" and self.score_scale != 1:
            raise ValueError(
                "`model.loss.score_scale` has no effect with `model.loss.scores: ignore`: set `scores` too"
            )
        if self.scores == "weight" and self.couples_pairs:
            raise ValueError(
                f"`model.loss.scores: weight` weights each pair by itself, and {type(self).__name__} compares the pairs"
                " of a micro-batch with each other: leave it out, or take another loss"
            )

    @property
    def needs_reference(self) -> bool:
        """Whether `Pairs.reference` is read; if not, no reference is loaded and it is 0."""
        return True

    @property
    def couples_pairs(self) -> bool:
        """Whether the loss of a pair depends on the other pairs of its micro-batch."""
        return False

    @property
    def needs_common_length(self) -> bool:
        """Whether `Pairs.common_policy` and `common_reference` are read."""
        return False

    @property
    def needs_relative_logps(self) -> bool:
        """Whether `Pairs.relative_logps` is read."""
        return False

    @abstractmethod
    def formula(self, pairs: Pairs) -> Tensor:
        """The loss of each pair, [P], without the negative log-likelihood term."""

    def __call__(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Loss and weight of each pair, [P] and [P]; the objective is the weighted mean."""
        losses = self.formula(pairs)
        if self.nll_weight:
            losses = losses - self.nll_weight * pairs.policy[:, 0] / pairs.num_tokens[:, 0]
        if self.scores != "weight":
            return losses, torch.ones_like(losses)
        # A negative weight would unlearn the chosen response.
        return losses, self.scaled_gaps(pairs).clamp(min=0)

    def rewards(self, pairs: Pairs) -> dict[str, Tensor]:
        """The implicit rewards of both responses, {"chosen": [P], "rejected": [P]}, without gradient."""
        rewards = implicit_rewards(pairs.policy.detach(), pairs.reference, self.beta)
        return {"chosen": rewards[:, 0], "rejected": rewards[:, 1]}

    def scaled_gaps(self, pairs: Pairs) -> Tensor:
        """`score_scale` times the score gap of each pair, [P].

        Raises:
            ValueError: If a pair has no scores.
        """
        if pairs.score_gap is None:
            raise ValueError(
                f"`model.loss.scores` is {self.scores}, and some pairs have no scores: set it to `ignore`, or give"
                " every row the columns score_chosen and score_rejected"
            )
        return self.score_scale * pairs.score_gap


def require(
    name: str,
    value: float,
    *,
    above: float = -math.inf,
    at_least: float = -math.inf,
    below: float = math.inf,
    at_most: float = math.inf,
) -> None:
    """Refuse an argument of a loss outside of its range, or one that is not finite.

    Raises:
        ValueError: With the setting, the range and the value.
    """
    if math.isfinite(value) and above < value < below and at_least <= value <= at_most:
        return
    limits = [("greater than", above), ("at least", at_least), ("below", below), ("at most", at_most)]
    wanted = " and ".join(f"{word} {limit:g}" for word, limit in limits if math.isfinite(limit)) or "finite"
    raise ValueError(f"`model.loss.{name}` must be {wanted}, got {value}")


@dataclass(frozen=True, kw_only=True)
class CompletionLoss(ABC):
    """A loss over the loss tokens of completions. A subclass is a frozen dataclass without state."""

    # Whether the loss is more than a function of `scores.sums`: then every log-probability in `scores.logps` has a
    # gradient, at the cost of one more matrix product.
    token_gradients: ClassVar[bool] = False

    @property
    def needs_excess_logits(self) -> bool:
        """Whether `scores.excess_logits` is read."""
        return False

    @abstractmethod
    def __call__(self, scores: TokenScores) -> tuple[Tensor, int]:
        """The sum of the loss over the loss tokens, a scalar, and their number."""
