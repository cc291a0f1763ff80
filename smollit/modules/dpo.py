"""Direct preference optimisation, https://arxiv.org/abs/2305.18290: a policy beside its frozen reference."""

from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.optim import AdamW
from torchmetrics import MetricCollection

from smollit.batch import Batch
from smollit.functional.attention import AttentionBackend
from smollit.functional.preference import PreferenceLoss, implicit_rewards, preference_loss
from smollit.metrics import preference_metrics
from smollit.models.causal_lm import TokenScores
from smollit.models.recompute import GradientCheckpointing
from smollit.modules.base import FineTuningModule
from smollit.modules.optimizer import Schedule
from smollit.modules.reference import ReferenceMode, ReferenceScorer

ScoreUse = Literal["ignore", "weight", "offset"]


class PairScores(NamedTuple):
    """Sums over the tokens of each answer; all [N, 2], chosen then rejected.

    Args:
        logps: log p(answer | prompt).
        num_tokens: Scored tokens of the answer.
        logits: Sum of the tokens' mean logits.
    """

    logps: Tensor
    num_tokens: Tensor
    logits: Tensor


class DPOModule(FineTuningModule):
    """Fine-tunes on preference pairs: the policy learns to prefer the chosen answer more than its reference does.

    Args:
        model_name: Hub id or local folder of the policy: the model that an SFT run exported.
        reference_name: Hub id or local folder of the frozen reference; null takes `model_name`.
        reference: `frozen` keeps the reference beside the policy; `offloaded` keeps it in the CPU's memory between
            uses; `precomputed` scores all pairs once, before training, keeps the values in `data.cache_dir` (which
            all nodes must share) for runs to come, and needs no memory afterwards.
        init_from: A checkpoint whose weights the policy starts from, at step 0; null takes those of `model_name`.
        beta: How closely the policy keeps to the reference; higher is closer.
        loss: `sigmoid` (DPO), `ipo` (bounded margins), or `hinge` (SLiC).
        label_smoothing: Share of pairs assumed to be labelled the wrong way round, 0 to below 0.5; `sigmoid` only.
        nll_weight: Weight of the chosen answer's mean negative log-likelihood per token, added to the loss (RPO).
        scores: What the gap score_chosen - score_rejected does: `ignore`; `weight` counts each pair `score_scale` x
            gap times, and not at all where the gap is below 0; `offset` asks for a margin of `score_scale` x gap
            (ODPO), `sigmoid` only.
        score_scale: Of the gaps.
        learning_rate: Peak learning rate, reached after the warm-up.
        optimizer: Any torch optimizer; its learning rate is `learning_rate`.
        schedule: Shape of the learning rate over the optimizer steps.
        num_warmup_steps: Optimizer steps over which the learning rate rises from 0.
        attention: How examples are kept apart: `documents` needs no padding and no mask, on any device;
            `flex_attention` is for GPUs; `sdpa` and `eager` mask padded rows.
        chunk_size: Tokens whose logits exist at the same time.
        gradient_checkpointing: true recomputes layers in the backward pass: less memory, about a third more time;
            `selective` keeps matrix products and recomputes the cheap rest.
        compile: Compile the policy with torch.compile, in place: checkpoints stay the same.
        dropout: Attention dropout of the policy. 0 by default, since its noise would count as reward.
        non_finite: `stop` the run at a loss or gradient that is not finite, or `skip` that optimizer step.
        max_new_tokens: Longest answer in tokens, for `predict`.
        temperature: Of sampling in `predict`; 0 takes the likeliest token.
    """

    nominal_count = 1.0
    bar_names = ("loss", "rewards/accuracies", "rewards/margins")

    def __init__(
        self,
        model_name: str,
        reference_name: str | None = None,
        reference: ReferenceMode = "frozen",
        init_from: str | None = None,
        beta: float = 0.1,
        loss: PreferenceLoss = "sigmoid",
        label_smoothing: float = 0.0,
        nll_weight: float = 0.0,
        scores: ScoreUse = "ignore",
        score_scale: float = 1.0,
        learning_rate: float = 5e-6,
        optimizer: OptimizerCallable = lambda params: AdamW(params, weight_decay=0.0),
        schedule: Schedule = "linear",
        num_warmup_steps: int = 0,
        attention: AttentionBackend = "documents",
        chunk_size: int = 512,
        gradient_checkpointing: GradientCheckpointing = False,
        compile: bool = False,
        dropout: float | None = 0.0,
        non_finite: Literal["stop", "skip"] = "stop",
        max_new_tokens: int = 256,
        temperature: float = 0.0,
    ) -> None:
        super().__init__(
            model_name,
            "pretrained",
            init_from,
            learning_rate,
            optimizer,
            schedule,
            num_warmup_steps,
            attention,
            chunk_size,
            gradient_checkpointing,
            compile,
            dropout,
            non_finite,
            max_new_tokens,
            temperature,
        )
        check_loss_options(beta, loss, label_smoothing, nll_weight)
        check_score_options(scores, score_scale, loss)
        self.reference_name = reference_name or model_name
        self.beta = beta
        self.loss: PreferenceLoss = loss
        self.label_smoothing = label_smoothing
        self.nll_weight = nll_weight
        self.scores = scores
        self.score_scale = score_scale
        self.scorer = ReferenceScorer(self.reference_name, reference)

    def make_metrics(self, prefix: str) -> MetricCollection:
        """`loss`, `rewards/*`, `logps/*`, `logits/*`."""
        return preference_metrics(prefix)

    def step(self, batch: Batch, stage: str) -> tuple[Tensor, Tensor | float]:
        """Sum of the pairs' losses, and the number of pairs, or the sum of their weights."""
        policy = sum_pairs(self.policy(batch, mean_logits=True))
        reference_logps = self.scorer.logps(batch)
        losses = self.losses(policy, reference_logps, score_offset(batch, self.scores, self.score_scale))
        self.update_metrics(stage, losses.detach(), policy, reference_logps)
        if self.scores != "weight":
            return losses.sum(), batch.num_examples
        weights = (self.score_scale * score_gaps(batch)).clamp(min=0)  # below 0 it would unlearn the chosen answer
        return (weights * losses).sum(), weights.sum()

    def losses(self, policy: PairScores, reference_logps: Tensor, offset: Tensor | float = 0.0) -> Tensor:
        """One loss per pair, [N]."""
        chosen, rejected = (policy.logps - reference_logps).unbind(dim=1)
        num_chosen, num_rejected = policy.num_tokens.unbind(dim=1)
        losses = preference_loss(
            chosen, rejected, num_chosen, num_rejected, self.loss, self.beta, self.label_smoothing, offset
        )
        if self.nll_weight:
            losses = losses - self.nll_weight * policy.logps[:, 0] / num_chosen
        return losses

    def update_metrics(self, stage: str, losses: Tensor, policy: PairScores, reference_logps: Tensor) -> None:
        """Count N pairs into the stage's metrics."""
        metrics = self.stage_metrics(stage)
        logps = policy.logps.detach()
        chosen, rejected = implicit_rewards(logps, reference_logps, self.beta).unbind(dim=1)
        metrics["loss"].update(losses)
        metrics["rewards/accuracies"].update(chosen, rejected)
        metrics["rewards/margins"].update(chosen, rejected)
        for column, name in enumerate(("chosen", "rejected")):
            metrics[f"rewards/{name}"].update((chosen, rejected)[column])
            metrics[f"logps/{name}"].update(logps[:, column])
            metrics[f"logits/{name}"].update(policy.logits[:, column], policy.num_tokens[:, column])

    # ---- the reference

    @property
    def reference(self) -> nn.Module:
        """The frozen reference model; there is none in memory if its values were precomputed."""
        return self.scorer.model

    def configure_model(self) -> None:
        """Load policy and reference, or the reference's values."""
        self.scorer.configure(self)
        super().configure_model()

    def on_fit_start(self) -> None:
        """Move the reference beside the policy."""
        super().on_fit_start()
        self.scorer.place(self.device)

    def on_validation_start(self) -> None:
        """Move the reference beside the policy."""
        self.scorer.place(self.device)

    def on_test_start(self) -> None:
        """Move the reference beside the policy."""
        self.scorer.place(self.device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the reference's identity, not its weights."""
        checkpoint["reference"] = self.scorer.identity

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to go on beside another reference.

        Raises:
            ValueError: If the reference's weights are not those that the run began with.
        """
        self.scorer.check_identity(checkpoint.get("reference"))


def sum_pairs(scores: TokenScores) -> PairScores:
    """Token scores, [M] -> sums per answer, [N, 2]."""
    assert scores.mean_logits is not None, "the policy is asked for mean logits"
    num_tokens, logits = map(scores.per_response, (torch.ones_like(scores.logps), scores.mean_logits))
    return PairScores(scores.sums[scores.pairs], num_tokens[scores.pairs], logits[scores.pairs])


def score_gaps(batch: Batch) -> Tensor:
    """score_chosen - score_rejected, [N].

    Raises:
        ValueError: If a pair has no scores.
    """
    if batch.score_gap is None:
        raise ValueError("`model.scores` uses scores, and some pairs have none: set it to ignore, or give both columns")
    return batch.score_gap


def score_offset(batch: Batch, scores: ScoreUse, scale: float) -> Tensor | float:
    """By how much each pair's beta times margin should exceed 0, [N]; 0 if scores are not used so."""
    return scale * score_gaps(batch) if scores == "offset" else 0.0


def check_loss_options(beta: float, loss: PreferenceLoss, label_smoothing: float, nll_weight: float) -> None:
    """Refuse options that would be ignored or have no meaning."""
    if beta <= 0:
        raise ValueError(f"`model.beta` must be above 0, got {beta}")
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"`model.label_smoothing` must be at least 0 and below 0.5, got {label_smoothing}")
    if label_smoothing and loss != "sigmoid":
        raise ValueError(f"`model.label_smoothing` is for the sigmoid loss, and `model.loss` is {loss}: set it to 0")
    if nll_weight < 0:
        raise ValueError(f"`model.nll_weight` must be at least 0, got {nll_weight}")


def check_score_options(scores: ScoreUse, scale: float, loss: PreferenceLoss) -> None:
    """Refuse uses of scores that would be ignored or have no meaning."""
    if scale <= 0:
        raise ValueError(f"`model.score_scale` must be above 0, got {scale}")
    if scores == "offset" and loss != "sigmoid":
        raise ValueError(f"`model.scores: offset` is for the sigmoid loss, and `model.loss` is {loss}")
