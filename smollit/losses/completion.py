"""Losses of completions: NLL and DFT."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from smollit.functional.scores import TokenScores
from smollit.losses.base import CompletionLoss, require


@dataclass(frozen=True, kw_only=True)
class NLL(CompletionLoss):
    """-log p(token | prefix), the mean over all loss tokens: cross-entropy, each token with the same weight.

    With `label_smoothing` e it is the cross-entropy to labels of probability 1 - e, with e spread over the vocabulary,
    https://arxiv.org/abs/1512.00567: -(1 - e) log p(label) - e mean_v log p_v. The metric `loss` stays -log p.

    Args:
        label_smoothing: Probability that is spread over the whole vocabulary, from 0 to below 1.
    """

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        require("label_smoothing", self.label_smoothing, at_least=0, below=1)

    @property
    def needs_excess_logits(self) -> bool:
        """With label smoothing."""
        return self.label_smoothing > 0

    def __call__(self, scores: TokenScores) -> tuple[Tensor, int]:
        """Sum of -log p + e (logit of the label - mean logit) over the loss tokens, and their number."""
        loss = -scores.sums.sum()
        if self.label_smoothing:
            assert scores.excess_logits is not None, "the policy is called with excess_logits=True"
            # log p_v = z_v - log Z, and log Z cancels out of log p(label) - mean_v log p_v.
            loss = loss + self.label_smoothing * scores.excess_logits.sum()
        return loss, scores.logps.numel()


@dataclass(frozen=True, kw_only=True)
class DFT(CompletionLoss):
    """-p log p of each loss token, where the factor p has no gradient: dynamic fine-tuning.

    https://arxiv.org/abs/2508.05629: tokens that the model finds improbable pull less.
    """

    token_gradients: ClassVar[bool] = True

    def __call__(self, scores: TokenScores) -> tuple[Tensor, int]:
        """Sum of -p log p over the loss tokens, and their number."""
        return -(scores.logps.detach().exp() * scores.logps).sum(), scores.logps.numel()
