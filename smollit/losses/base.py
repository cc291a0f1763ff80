"""Base classes of the losses: PreferenceLoss for the DPO family, CompletionLoss for the SFT family."""

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
        if self.beta <= 0:
            raise ValueError(f"`model.loss.beta` must be greater than 0, got {self.beta}")
        if self.nll_weight < 0:
            raise ValueError(f"`model.loss.nll_weight` must be at least 0, got {self.nll_weight}")
        if self.score_scale <= 0:
            raise ValueError(f"`model.loss.score_scale` must be greater than 0, got {self.score_scale}")

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


@dataclass(frozen=True, kw_only=True)
class CompletionLoss(ABC):
    """A loss over the loss tokens of completions. A subclass is a frozen dataclass without state."""

    # Whether the loss is more than a function of `scores.sums`: then every log-probability in `scores.logps` has a
    # gradient, at the cost of one more matrix product.
    token_gradients: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, scores: TokenScores) -> tuple[Tensor, int]:
        """The sum of the loss over the loss tokens, a scalar, and their number."""
