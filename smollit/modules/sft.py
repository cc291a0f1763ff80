"""Supervised fine-tuning: next-token prediction on the completions of chats."""

from typing import Any, Literal

from torchmetrics import MetricCollection

from smollit.batch import Batch
from smollit.functional.rows import RowValues
from smollit.losses import NLL, CompletionLoss
from smollit.losses.settings import LOSS, completion_loss
from smollit.metrics import language_metrics
from smollit.modules.base import FineTuningModule, SumAndCount


class SFTModule(FineTuningModule):
    """Fine-tunes on chats: mean negative log-likelihood per loss token, each token with the same weight.

    Args:
        model_name: Hub id or local folder of the model to train.
        weights: `pretrained`, or `random` to start from scratch with the model's configuration.
        loss: Loss of the loss tokens, by class: `NLL`, or your own by its class_path.
        **options: All other options of FineTuningModule.
    """

    nominal_count = 1024.0

    def __init__(
        self,
        model_name: str = "HuggingFaceTB/SmolLM-135M",
        *,
        weights: Literal["pretrained", "random"] = "pretrained",
        loss: CompletionLoss = NLL(),
        **options: Any,
    ) -> None:
        super().__init__(model_name, **options)
        self.weights = weights
        self.loss = completion_loss(loss)
        self.save_hyperparameters({"loss": LOSS.as_settings(self.loss)})

    def make_metrics(self, prefix: str) -> MetricCollection:
        """`loss`, `perplexity`, `token_accuracy`; in validation and test also `entropy`."""
        return language_metrics(prefix, entropy=prefix != "train/")

    def step(self, batch: Batch, stage: str) -> SumAndCount:
        """Sum of -log p over the loss tokens, and their number; divided once per optimizer step: modules/base.py."""
        options = {"token_gradients": self.loss.token_gradients, "excess_logits": self.loss.needs_excess_logits}
        scores = self.policy(batch, correct=True, entropy=stage != "train", **options)
        self.metrics_of(stage).update(logps=scores.logps, correct=scores.correct, entropies=scores.entropies)
        self.row_values = RowValues.of_chats(stage, batch, scores.logps)
        return self.loss(scores)
