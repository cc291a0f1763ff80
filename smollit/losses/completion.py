"""Losses of completions: NLL and DFT."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from smollit.functional.scores import TokenScores
from smollit.losses.base import CompletionLoss


@dataclass(frozen=True, kw_only=True)
class NLL(CompletionLoss):
    """-log p(token | prefix), the mean over all loss tokens: cross-entropy, each token with the same weight."""

    def __call__(self, scores: TokenScores) -> tuple[Tensor, int]:
        """Sum of -log p over the loss tokens, and their number."""
        return -scores.sums.sum(), scores.logps.numel()


@dataclass(frozen=True, kw_only=True)
class DFT(CompletionLoss):
    """-p log p of each loss token, where the factor p has no gradient: dynamic fine-tuning.

    https://arxiv.org/abs/2508.05629: tokens that the model finds improbable pull less.
    """

    token_gradients: ClassVar[bool] = True

    def __call__(self, scores: TokenScores) -> tuple[Tensor, int]:
        """Sum of -p log p over the loss tokens, and their number."""
        return -(scores.logps.detach().exp() * scores.logps).sum(), scores.logps.numel()
