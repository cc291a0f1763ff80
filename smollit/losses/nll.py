"""NLL: the loss of next-token prediction."""

from dataclasses import dataclass

from torch import Tensor

from smollit.functional.scores import TokenScores
from smollit.losses.base import CompletionLoss


@dataclass(frozen=True, kw_only=True)
class NLL(CompletionLoss):
    """-log p(token | prefix), the mean over all loss tokens: cross-entropy, each token with the same weight."""

    def __call__(self, scores: TokenScores) -> tuple[Tensor, int]:
        """Sum of -log p over the loss tokens, and their number."""
        return -scores.sums.sum(), scores.logps.numel()
