"""Direct preference optimization, https://arxiv.org/abs/2305.18290: a policy and its frozen reference."""

import logging
import os
from typing import Any

from torch import Tensor, nn
from torchmetrics import MetricCollection

from smollit.batch import Batch
from smollit.functional.pairs import Pairs
from smollit.functional.rows import RowValues
from smollit.losses import DPO, PreferenceLoss
from smollit.losses.settings import LOSS, preference_loss
from smollit.metrics import pair_diagnostics, preference_metrics
from smollit.models.in_memory import on_disk
from smollit.modules.base import FineTuningModule, SumAndCount
from smollit.modules.reference import ReferenceMode, ReferenceScorer, ScorerMode

log = logging.getLogger(__name__)


class DPOModule(FineTuningModule):
    """Fine-tunes on preference pairs: the policy learns to prefer the chosen response more than its reference does.

    Args:
        model_name: Hub id or local folder of the policy: the model that an SFT run exported.
        reference_name: Hub id or local folder of the frozen reference; null uses `model_name`.
        reference: `frozen` keeps the reference model on the policy's device, or, if `adapter` is set and the policy
            starts from its reference, uses the policy without its adapter; `offloaded` keeps it in CPU memory between
            uses; `precomputed` scores all pairs once, before training, stores the values in `data.cache_dir` (which
            all nodes must share) for later runs, and needs no memory afterwards.
        loss: Loss of a pair, by class: `DPO` (also called sigmoid), `IPO`, `APOZero`, `SimPO` and others, listed
            in docs/losses.md, or your own by its class_path. Its arguments are below `model.loss`.
        learning_rate: Peak learning rate, reached after the warm-up. If it is much higher than the default, the
            rewards of both responses fall.
        dropout: Dropout of the policy, wherever the model has some. 0 by default, because its noise would count as
            reward; null keeps the model's.
        **options: All other options of FineTuningModule.
    """

    bar_names = ("loss", "rewards/accuracies", "rewards/margins")

    def __init__(
        self,
        model_name: str,
        *,
        reference_name: str | None = None,
        reference: ReferenceMode = "frozen",
        loss: PreferenceLoss = DPO(),
        learning_rate: float = 5e-6,
        dropout: float | None = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(model_name, learning_rate=learning_rate, dropout=dropout, **options)
        self.loss = preference_loss(loss)
        self.save_hyperparameters({"loss": LOSS.as_settings(self.loss)})
        if not self.loss.needs_reference and (reference_name or reference != "frozen"):
            raise ValueError(
                f"`model.loss` is {type(self.loss).__name__}, which has no reference: leave out `model.reference` and"
                " `model.reference_name`"
            )
        if self.loss.needs_common_length and reference == "precomputed":
            raise ValueError(
                f"`model.loss` is {type(self.loss).__name__}, which reads the reference's log-probability of each"
                " token, and `model.reference: precomputed` stores those of whole responses: set it to `frozen`"
            )
        reference_name = reference_name and os.path.expanduser(on_disk(reference_name, may_be_frozen=True))
        self.save_hyperparameters({"reference_name": reference_name})
        mode = self._scorer_mode(reference_name, reference)
        if self.quantize is not None and mode not in ("adapter", "none"):
            raise ValueError(
                "`model.quantize` needs the policy without its adapter as the reference, with the same weights in 4"
                " bits: leave out `model.reference`, `reference_name`, `init_from` and `model.adapter.vocabulary`"
            )
        self.scorer = ReferenceScorer(reference_name or self.model_name, mode)

    def _scorer_mode(self, reference_name: str | None, reference: ReferenceMode) -> ScorerMode:
        """Without its adapter, the policy is the model that it started from, so no second one is needed."""
        starts_from_reference = reference_name in (None, self.model_name) and self.init_from is None
        if not self.loss.needs_reference:
            return "none"
        if reference == "frozen" and self.adapter and not self.adapter.vocabulary and starts_from_reference:
            return "adapter"
        return reference

    def make_metrics(self, prefix: str) -> MetricCollection:
        """`loss`, `rewards/*`, `logps/*`, `logits/*`; in validation and test also diagnostics of the pairs."""
        return preference_metrics(prefix, {} if prefix == "train/" else pair_diagnostics())

    def step(self, batch: Batch, stage: str) -> SumAndCount:
        """Sum of the pairs' weighted losses, and the sum of their weights: without weights, the number of pairs."""
        pairs = self.pairs(batch, entropy=stage != "train")
        losses, weights = self.loss(pairs)
        rewards = self.loss.rewards(pairs)
        self.metrics_of(stage).update(pairs=pairs, losses=losses, weights=weights, **rewards)
        if batch.pair_rows is not None:
            margins = rewards["chosen"] - rewards["rejected"]
            self.row_values = RowValues(stage, batch.pair_rows, losses.detach(), weights.detach(), margins)
        # The mean of eq. 7 is over all pairs of an optimizer step: `FineTuningModule.on_before_optimizer_step`
        # divides the gradients once by the weights of all micro-batches and devices (modules/base.py).
        return (weights * losses).sum(), weights.sum()

    def pairs(self, batch: Batch, *, entropy: bool = False) -> Pairs:
        """The batch's pairs of responses with their log-probabilities, and with what loss and metrics read besides."""
        by_token = self.loss.needs_common_length
        options = {"token_gradients": by_token, "relative_logps": self.loss.needs_relative_logps, "entropy": entropy}
        scores = self.policy(batch, mean_logits=True, **options)
        if not by_token:
            return scores.per_pair(reference=self.reference_logps(batch))
        reference = self.scorer.scores(batch)
        return scores.per_pair(reference=reference.sums, reference_tokens=reference.logps)

    # ---- the reference

    def reference_logps(self, batch: Batch) -> Tensor:
        """log pi_ref(y | x) of each response of the batch, [number of responses], without gradient."""
        return self.scorer.logps(batch)

    @property
    def reference(self) -> nn.Module:
        """The frozen reference model; with `precomputed` there is none."""
        return self.scorer.model

    def configure_model(self) -> None:
        """Load the reference and the policy."""
        self.scorer.configure(self)
        super().configure_model()

    def on_fit_start(self) -> None:
        """Move the reference to the policy's device; say where a loss depends on the size of the micro-batch."""
        super().on_fit_start()
        self.scorer.place(self.device)
        if self.loss.couples_pairs and self.trainer.accumulate_grad_batches * self.trainer.world_size > 1:
            log.warning(
                "`model.loss` %s compares the pairs of a micro-batch with each other: with accumulation or several"
                " devices, it differs from the loss of one large batch",
                type(self.loss).__name__,
            )

    def on_validation_start(self) -> None:
        """Move the reference to the policy's device."""
        self.scorer.place(self.device)

    def on_test_start(self) -> None:
        """Move the reference to the policy's device."""
        self.scorer.place(self.device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the identity of the reference, and its weights only if they follow the policy."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["reference"] = self.scorer.state

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to resume with another reference.

        Raises:
            ValueError: If the reference's weights are not those that the run began with.
        """
        super().on_load_checkpoint(checkpoint)
        self.scorer.restore(checkpoint.get("reference"))
