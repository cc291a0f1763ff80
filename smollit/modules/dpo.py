"""Direct preference optimisation, https://arxiv.org/abs/2305.18290: a policy beside its frozen reference."""

from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.optim import AdamW
from torchmetrics import MetricCollection

from smollit.batch import CHOSEN, Batch
from smollit.functional.attention import AttentionBackend
from smollit.functional.logps import sum_per_sequence
from smollit.functional.preference import PreferenceLoss, implicit_rewards, preference_loss
from smollit.metrics import preference_metrics
from smollit.models.causal_lm import TokenScores
from smollit.modules.base import FineTuningModule, Schedule, Stage


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
        init_from: A checkpoint whose weights the policy starts from, at step 0; null takes those of `model_name`.
        beta: How closely the policy keeps to the reference; higher is closer.
        loss: `sigmoid` (DPO), `ipo` (bounded margins), or `hinge` (SLiC).
        label_smoothing: Share of pairs assumed to be labelled the wrong way round, 0 to below 0.5; `sigmoid` only.
        nll_weight: Weight of the chosen answer's mean negative log-likelihood per token, added to the loss (RPO).
        learning_rate: Peak learning rate, reached after the warm-up.
        optimizer: Any torch optimizer; its learning rate is `learning_rate`.
        schedule: Shape of the learning rate over the optimizer steps.
        num_warmup_steps: Optimizer steps over which the learning rate rises from 0.
        attention: Attention backend of transformers.
        chunk_size: Tokens whose logits exist at the same time.
        gradient_checkpointing: Recompute layers in the backward pass: less memory, about a third more time.
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
        init_from: str | None = None,
        beta: float = 0.1,
        loss: PreferenceLoss = "sigmoid",
        label_smoothing: float = 0.0,
        nll_weight: float = 0.0,
        learning_rate: float = 5e-6,
        optimizer: OptimizerCallable = lambda params: AdamW(params, weight_decay=0.0),
        schedule: Schedule = "linear",
        num_warmup_steps: int = 0,
        attention: AttentionBackend = "sdpa",
        chunk_size: int = 1024,
        gradient_checkpointing: bool = False,
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
            dropout,
            non_finite,
            max_new_tokens,
            temperature,
        )
        check_loss_options(beta, loss, label_smoothing, nll_weight)
        self.reference_name = reference_name or model_name
        self.beta = beta
        self.loss: PreferenceLoss = loss
        self.label_smoothing = label_smoothing
        self.nll_weight = nll_weight
        # In a tuple, so not a submodule: out of checkpoints, the optimizer and train(). See `reference`.
        self._frozen: tuple[nn.Module, ...] = ()

    def make_metrics(self, prefix: str) -> MetricCollection:
        """`loss`, `rewards/*`, `logps/*`, `logits/*`."""
        return preference_metrics(prefix)

    def step(self, batch: Batch, stage: Stage) -> tuple[Tensor, Tensor]:
        """Sum of the pairs' losses, and the number of pairs."""
        policy = sum_pairs(self.policy(batch), batch.num_examples)
        with torch.no_grad():
            reference = sum_pairs(self.reference(batch), batch.num_examples)
        losses = self.losses(policy, reference.logps)
        self.update_metrics(stage, losses.detach(), policy, reference.logps)
        return losses.sum(), torch.tensor(batch.num_examples, device=losses.device)

    def losses(self, policy: PairScores, reference_logps: Tensor) -> Tensor:
        """One loss per pair, [N]."""
        log_ratios = policy.logps - reference_logps
        chosen, rejected = log_ratios.unbind(dim=1)
        num_chosen, num_rejected = policy.num_tokens.unbind(dim=1)
        losses = preference_loss(chosen, rejected, num_chosen, num_rejected, self.loss, self.beta, self.label_smoothing)
        if self.nll_weight:
            losses = losses - self.nll_weight * policy.logps[:, 0] / num_chosen
        return losses

    def update_metrics(self, stage: Stage, losses: Tensor, policy: PairScores, reference_logps: Tensor) -> None:
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
        """The frozen reference: eval mode, no gradients, never changed."""
        assert self._frozen, "configure_model() builds the reference"
        return self._frozen[0]

    def configure_model(self) -> None:
        """Load policy and reference."""
        super().configure_model()
        if not self._frozen:
            # As its source has it, whatever the policy becomes.
            reference = self.load(self.reference_name).requires_grad_(False).eval()
            self.reference_identity = {"source": self.reference_name, "fingerprint": reference.fingerprint()}
            self._frozen = (self.shard(reference),)

    def on_fit_start(self) -> None:
        """Move the reference beside the policy."""
        super().on_fit_start()
        self.place_reference()

    def on_validation_start(self) -> None:
        """Move the reference beside the policy."""
        self.place_reference()

    def on_test_start(self) -> None:
        """Move the reference beside the policy."""
        self.place_reference()

    def place_reference(self) -> None:
        """Lightning does not know the reference, so it is moved here; a sharded one stays where it is."""
        if self.device_mesh is None:
            self.reference.to(self.device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the reference's identity, not its weights."""
        checkpoint["reference"] = self.reference_identity

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to go on beside another reference.

        Raises:
            ValueError: If the reference's weights are not those that the run began with.
        """
        kept = checkpoint.get("reference")
        if kept and kept["fingerprint"] != self.reference_identity["fingerprint"]:
            raise ValueError(
                f"this run began beside the reference {kept['source']}, and {self.reference_name} now holds other"
                " weights: rewards would change their meaning. Give the original reference, or start a new run"
            )


def sum_pairs(scores: TokenScores, num_pairs: int) -> PairScores:
    """Token scores, [M] -> sums per answer, [N, 2]."""
    sequence_M = 2 * scores.document + (scores.branch - CHOSEN)
    sums = [
        sum_per_sequence(values_M, sequence_M, 2 * num_pairs).view(num_pairs, 2)
        for values_M in (scores.logps, torch.ones_like(scores.logps), scores.mean_logits)
    ]
    return PairScores(*sums)


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
