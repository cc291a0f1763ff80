"""Metrics of next-token prediction: each trained token counts once, whatever batch it came in."""

from torch import Tensor
from torchmetrics import MetricCollection

from smollit.metrics.base import RunningMean


class TokenLoss(RunningMean):
    """Mean negative log-likelihood per trained token, in nats."""

    higher_is_better = False

    def update(self, logps: Tensor, correct: Tensor) -> None:
        """Add the log-probabilities, [M], of M trained tokens."""
        self.add(-logps.detach().sum(dtype=self.total.dtype), logps.numel())


class Perplexity(TokenLoss):
    """exp of the mean negative log-likelihood per trained token."""

    def compute(self) -> Tensor:
        """exp(total / count), a scalar."""
        return super().compute().exp()


class TokenAccuracy(RunningMean):
    """Share of trained tokens that have the largest logit at their position."""

    higher_is_better = True

    def update(self, logps: Tensor, correct: Tensor) -> None:
        """Add the hits, [M] bool, of M trained tokens."""
        self.add(correct.sum(), correct.numel())


def language_metrics(prefix: str) -> MetricCollection:
    """`loss`, `perplexity` and `token_accuracy`, updated with (logps [M], correct [M])."""
    metrics = {"loss": TokenLoss(), "perplexity": Perplexity(), "token_accuracy": TokenAccuracy()}
    return MetricCollection(dict(metrics), prefix=prefix, compute_groups=False)
