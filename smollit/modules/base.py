"""FineTuningModule: what SFT and DPO share. Sums and counts, divided once per optimizer step; optimizer; logs."""

from abc import abstractmethod
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from transformers import get_scheduler

from smollit.batch import Batch
from smollit.functional.attention import AttentionBackend
from smollit.metrics import values
from smollit.models.causal_lm import CausalLM
from smollit.models.checkpoint import load_weights
from smollit.models.compile import compile_layers
from smollit.models.recompute import GradientCheckpointing
from smollit.models.sharding import gradient_norm, scale_gradients, shard, unwrap
from smollit.models.vocabulary import fit_vocabulary
from smollit.modules.measured import MeasuredModule
from smollit.modules.optimizer import Schedule, set_learning_rate
from smollit.modules.window import Window


class NonFiniteError(ValueError):
    """The loss or the gradient norm became infinite or NaN; the weights are those of the last good step."""


class FineTuningModule(MeasuredModule):
    """A policy that is trained, and the exact bookkeeping around it.

    A loss is a sum and a count. `training_step` returns sum / nominal_count; before the optimizer step, gradients are
    multiplied by nominal_count x accumulation x devices / (count over all micro-batches and devices). So the step is
    that of one large batch, however it was split.

    Args:
        model_name: Hub id or local folder of the model to train.
        weights: `pretrained`, or `random` to start from scratch with the model's configuration.
        init_from: A checkpoint whose weights a new run starts from, at step 0; null takes those of `model_name`.
        learning_rate: Peak learning rate, reached after the warm-up.
        optimizer: Any torch optimizer; its learning rate is `learning_rate`.
        schedule: Shape of the learning rate over the optimizer steps.
        num_warmup_steps: Optimizer steps over which the learning rate rises from 0.
        attention: How examples are kept apart: `documents` needs no padding and no mask, on any device;
            `flex_attention` and `flash_attention_2` (no DPO) are for GPUs; `sdpa` and `eager` mask padded rows.
        chunk_size: Tokens whose logits exist at the same time.
        gradient_checkpointing: true recomputes layers in the backward pass: less memory, about a third more time;
            `selective` keeps matrix products and recomputes the cheap rest.
        compile: Compile the policy with torch.compile, in place: checkpoints stay the same.
        dropout: Attention dropout of the policy; null keeps the model's own.
        non_finite: `stop` the run at a loss or gradient that is not finite, or `skip` that optimizer step.
        max_new_tokens: Longest answer in tokens, for `predict`.
        temperature: Of sampling in `predict`; 0 takes the likeliest token.
    """

    nominal_count = 1.0  # keeps fp16 gradients in range; cancels out
    policy: nn.Module  # a CausalLM, or its FSDP wrapper; None until configure_model()

    def __init__(
        self,
        model_name: str = "HuggingFaceTB/SmolLM-135M",
        weights: Literal["pretrained", "random"] = "pretrained",
        init_from: str | None = None,
        learning_rate: float = 2e-5,
        optimizer: OptimizerCallable = lambda params: AdamW(params, weight_decay=0.0),
        schedule: Schedule = "linear",
        num_warmup_steps: int = 0,
        attention: AttentionBackend = "documents",
        chunk_size: int = 512,
        gradient_checkpointing: GradientCheckpointing = False,
        compile: bool = False,
        dropout: float | None = None,
        non_finite: Literal["stop", "skip"] = "stop",
        max_new_tokens: int = 256,
        temperature: float = 0.0,
    ) -> None:
        super().__init__()
        if learning_rate <= 0:
            raise ValueError(f"`model.learning_rate` must be above 0, got {learning_rate}")
        if num_warmup_steps < 0:
            raise ValueError(f"`model.num_warmup_steps` must be at least 0, got {num_warmup_steps}")
        self.save_hyperparameters(ignore=["optimizer"])
        self.model_name = model_name
        self.weights = weights
        self.init_from = init_from
        self.learning_rate = learning_rate
        self.optimizer = optimizer
        self.schedule = schedule
        self.num_warmup_steps = num_warmup_steps
        self.attention: AttentionBackend = attention
        self.chunk_size = chunk_size
        self.gradient_checkpointing: GradientCheckpointing = gradient_checkpointing
        self.compile_policy = compile
        self.dropout = dropout
        self.non_finite = non_finite
        self.max_new_tokens = max_new_tokens
        self.temperature = temperature
        self.policy = None  # type: ignore[assignment]
        self.window = Window()
        self.gradient_norm: Tensor | None = None
        self.num_skipped_steps = 0

    # ---- what a subclass says

    @abstractmethod
    def step(self, batch: Batch, stage: str) -> tuple[Tensor, Tensor | float]:
        """Update the stage's metrics; return the loss's sum over the micro-batch and what it is a sum of."""

    # ---- Lightning's hooks: steps

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The micro-batch's share of the loss."""
        loss_sum, count = self.step(batch, "train")
        self.window.add(loss_sum, count, batch.example_ids)
        return loss_sum / self.nominal_count

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Count into the metrics of the validation set."""
        self.step(batch, self.val_stages[dataloader_idx])

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Count into the test metrics."""
        self.step(batch, "test")

    def predict_step(self, batch: Batch, batch_idx: int) -> list[tuple[int, list[int]]]:
        """(row number, token ids of the answer) for each prompt."""
        if not batch.num_examples:
            return []
        stop_ids = self.trainer.datamodule.template.stop_ids()  # type: ignore[attr-defined]
        answers = unwrap(self.policy).generate(batch, self.max_new_tokens, stop_ids, self.temperature)
        return list(zip(batch.example_ids.tolist(), answers, strict=True))

    # ---- Lightning's hooks: one optimizer step

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Divide by the window's count over all ranks; stop or skip if what comes out is not finite."""
        totals = self.window.totals(self.trainer.strategy)
        parts = self.nominal_count * self.trainer.accumulate_grad_batches * self.trainer.world_size
        factor = parts / torch.where(totals[1] > 0, totals[1], 1.0)
        self.gradient_norm = gradient_norm(self.policy) * factor
        finite = torch.stack([totals[0], self.gradient_norm.to(totals)]).isfinite().tolist()
        # Division and clipping in one go: each look at all gradients takes time.
        scale_gradients(self.policy.parameters(), factor * self._clip_factor(self.gradient_norm))
        if not all(finite):
            self._on_non_finite(float(totals[0] / totals[1]), float(self.gradient_norm), loss_is_finite=finite[0])
        self.window.clear()

    def _clip_factor(self, norm: Tensor) -> Tensor | float:
        """What brings the gradients' norm down to `trainer.gradient_clip_val`, with every strategy: Lightning's own
        refuses FSDP."""
        limit = self.trainer.gradient_clip_val
        if not limit or self.trainer.gradient_clip_algorithm == "value":
            return 1.0
        return (limit / (norm + 1e-6)).clamp(max=1.0)

    def _on_non_finite(self, loss: float, norm: float, loss_is_finite: bool) -> None:
        # fp16's GradScaler meets infinite gradients while it looks for its scale, and skips those steps itself.
        scaler_skips = loss_is_finite and getattr(self.trainer.precision_plugin, "scaler", None) is not None
        if scaler_skips or self.non_finite == "skip":
            self.num_skipped_steps += 1
            if not scaler_skips:
                for parameter in self.policy.parameters():
                    parameter.grad = None
            return
        raise NonFiniteError(
            f"step {self.trainer.global_step + 1}: loss {loss:g}, gradient norm {norm:g}, at learning rate"
            f" {self.current_learning_rate():.3g}, on rows {self.window.rows()}. The weights are those of the step"
            " before. Lower `model.learning_rate`, look at these rows, or set `model.non_finite: skip`"
        )

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by value, if asked; clipping by norm is done in `on_before_optimizer_step`."""
        if gradient_clip_val and gradient_clip_algorithm == "value":
            torch.nn.utils.clip_grad_value_(self.policy.parameters(), gradient_clip_val)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Log the mean over all that was seen since the last log, every `log_every_n_steps` optimizer steps."""
        stepped = not self.window
        if stepped and self.logs_this_step:
            self.report(
                values(self.stage_metrics("train"))
                | {
                    "train/learning_rate": self.used_learning_rate,
                    "train/gradient_norm": self.gradient_norm,
                    "train/skipped_steps": float(self.num_skipped_steps),
                    "train/epoch": self.trainer.current_epoch + (batch_idx + 1) / self.trainer.num_training_batches,
                }
            )

    # ---- Lightning's hooks: model and optimizer

    def configure_model(self) -> None:
        """Load the policy, and shard it where the strategy asks for it. Lightning may call it twice."""
        if self.policy is None:
            model = self.load(self.model_name, self.weights, self.gradient_checkpointing, self.dropout)
            if self.init_from and not (self._trainer and self._trainer.ckpt_path):  # a resume brings its own weights
                load_weights(model, Path(self.init_from), self.model_name)
            if self.compile_policy:
                compile_layers(model)
            self.policy = self.shard(model)

    def load(
        self,
        model_name: str,
        weights: Literal["pretrained", "random"] = "pretrained",
        gradient_checkpointing: GradientCheckpointing = False,
        dropout: float | None = None,
    ) -> CausalLM:
        """A whole model, in the dtype of the trainer's precision, with an embedding for each token of the data."""
        model = CausalLM(
            model_name,
            weights=weights,
            dtype=self.weights_dtype(),
            attention=self.attention,
            chunk_size=self.chunk_size,
            gradient_checkpointing=gradient_checkpointing,
            dropout=dropout,
        )
        data: Any = getattr(self._trainer, "datamodule", None)
        vocabulary_size = getattr(data, "vocabulary_size", None)  # another data module has none
        if vocabulary_size is not None:
            fit_vocabulary(model.model, vocabulary_size, data.add_tokens)
        return model

    def shard(self, model: CausalLM) -> nn.Module:
        """The model, sharded where the strategy asks for it."""
        return shard(model, self.device_mesh["data_parallel"] if self.device_mesh else None)

    def weights_dtype(self) -> torch.dtype:
        """fp32, unless the precision ends in `-true`: a bf16 weight forgets small updates."""
        precision = str(self._trainer.precision) if self._trainer else "32-true"
        if precision == "16-true":
            raise ValueError(
                "`trainer.precision: 16-true` can't be trained: fp16 weights lose small updates and overflow."
                " Take 16-mixed, or bf16-true"
            )
        return {"bf16-true": torch.bfloat16, "64-true": torch.float64}.get(precision, torch.float32)

    def on_fit_start(self) -> None:
        """Refuse what would fail at the first step; see that dropout and checkpointing are on."""
        self.policy.train()
        self.window.clear()
        if self.attention == "flex_attention" and self.device.type == "cpu":
            raise ValueError("`model.attention: flex_attention` can't be trained on a CPU: take `documents`")
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        fused = any(group.get("fused") for optimizer in self.trainer.optimizers for group in optimizer.param_groups)
        if scaler is not None and fused:
            raise ValueError(
                "a fused optimizer can't be used with `trainer.precision: 16-mixed`: it would unscale gradients after"
                " they were clipped. Set `fused: false`, or take bf16-mixed"
            )

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer over the policy's trainable parameters; the schedule counts optimizer steps."""
        trainable = [parameter for parameter in self.policy.parameters() if parameter.requires_grad]
        optimizer = self.optimizer(trainable)
        set_learning_rate(optimizer, self.learning_rate)
        scheduler = get_scheduler(
            self.schedule,
            optimizer,
            num_warmup_steps=self.num_warmup_steps,
            num_training_steps=int(self.trainer.estimated_stepping_batches),
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def current_learning_rate(self) -> float:
        """Learning rate of the coming optimizer step."""
        return float(self.trainer.optimizers[0].param_groups[0]["lr"])

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Keep the learning rate that the step was made with: the schedule moves on before the log is written."""
        self.used_learning_rate = self.current_learning_rate()
        super().optimizer_step(*args, **kwargs)
