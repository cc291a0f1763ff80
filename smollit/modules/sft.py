"""Supervised fine-tuning: next-token prediction on the assistant's turns."""

from torch import Tensor
from torchmetrics import MetricCollection

from smollit.batch import Batch
from smollit.metrics import language_metrics
from smollit.modules.base import FineTuningModule


class SFTModule(FineTuningModule):
    """Fine-tunes on chats: mean negative log-likelihood per trained token, each token counted once."""

    nominal_count = 1024.0

    def make_metrics(self, prefix: str) -> MetricCollection:
        """`loss`, `perplexity`, `token_accuracy`."""
        return language_metrics(prefix)

    def step(self, batch: Batch, stage: str) -> tuple[Tensor, Tensor | float]:
        """Sum of -log p over the trained tokens, and their number."""
        scores = self.policy(batch, correct=True)
        self.stage_metrics(stage).update(scores.logps, scores.correct)
        return -scores.sums.sum(), batch.num_loss_tokens
