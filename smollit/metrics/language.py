"""Metrics of next-token prediction: each loss token has the same weight in all batches. M loss tokens."""

from torch import Tensor
from torchmetrics import MetricCollection

from smollit.metrics.base import MeanOfSums


class TokenLoss(MeanOfSums):
    """Mean negative log-likelihood per loss token, in nats."""

    higher_is_better = False

    def update(self, logps: Tensor) -> None:
        """Add the log-probabilities of M loss tokens, [M]."""
        self.add(-logps.detach().sum(dtype=self.total.dtype), logps.numel())


class Perplexity(TokenLoss):
    """exp of the mean negative log-likelihood per loss token."""

    def compute(self) -> Tensor:
        """exp(total / count), a scalar."""
        return super().compute().exp()


class TokenAccuracy(MeanOfSums):
    """Fraction of loss tokens that have the largest logit at their position."""

    higher_is_better = True

    def update(self, correct: Tensor) -> None:
        """Add M loss tokens, [M] bool."""
        self.add(correct.sum(), correct.numel())


class TokenEntropy(MeanOfSums):
    """Mean entropy of the model's distribution over the vocabulary, over the loss tokens, in nats."""

    def update(self, entropies: Tensor | None = None) -> None:
        """Add M loss tokens, [M]; a module of one's own may leave them out."""
        if entropies is not None:
            self.add_values(entropies)


def language_metrics(prefix: str, *, entropy: bool = False) -> MetricCollection:
    """`loss`, `perplexity` and `token_accuracy`, updated with logps=[M] and correct=[M].

    Args:
        prefix: The stage.
        entropy: Also `entropy`, updated with entropies=[M].
    """
    metrics: dict[str, MeanOfSums] = {
        "loss": TokenLoss(),
        "perplexity": Perplexity(),
        "token_accuracy": TokenAccuracy(),
    }
    more: dict[str, MeanOfSums] = {"entropy": TokenEntropy()} if entropy else {}
    return MetricCollection({**metrics, **more}, prefix=prefix, compute_groups=False)
