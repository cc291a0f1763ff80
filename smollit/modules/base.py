"""FineTuningModule, the base of SFT and DPO. Sums and counts, divided once per optimizer step; optimizer; logs."""

import math
import shlex
from abc import abstractmethod
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import AdamW, Optimizer

from smollit.batch import Batch, CountedTokens
from smollit.functional.rows import RowValues
from smollit.metrics import values
from smollit.models.sharding import gradient_norm, scale_gradients
from smollit.modules.lost_steps import BadStep, LostSteps, NonFiniteStepError
from smollit.modules.policy import PolicyModule
from smollit.modules.window import Window
from smollit.optim.half_life import HalfLife
from smollit.optim.optimizer import ParameterGroups, gradient_scaler, refuse_fused_with_scaler
from smollit.optim.rates import LearningRates
from smollit.optim.shared import Shared
from smollit.schedules import SCHEDULE, Linear, Schedule

SumAndCount = tuple[Tensor, Tensor | int]


class FineTuningModule(PolicyModule):
    """A policy that is trained with exact means.

    A step returns a sum and a count. `training_step` returns sum / nominal_count; before the optimizer step,
    `on_before_optimizer_step` multiplies the gradients by nominal_count x accumulation x devices / (count over all
    micro-batches and devices). The optimizer step is then that of the mean over one large batch, however it was split.

    Args:
        model_name: Hub id or local folder of the model to train.
        learning_rate: Peak learning rate, reached after the warm-up.
        optimizer: Any torch optimizer; its learning rate is `learning_rate`.
        beta2_half_life: Loss tokens after which a gradient counts half in Adam's second moment: beta2 is
            0.5 ** (loss tokens per step / beta2_half_life), whatever the size of a step. null leaves it to `optimizer`.
        schedule: Learning rate over the optimizer steps: `Linear`, `Cosine`, `WSD`, `Constant`, `InverseSqrt`, whose
            arguments are below `model.schedule`, or the class_path of a scheduler of torch.
        num_warmup_steps: Optimizer steps over which the learning rate rises to its peak: (step + 1) / num_warmup_steps.
        warmup_ratio: The same as a fraction of all steps, rounded up.
        decay_all: Apply weight decay to one-dimensional weights too: norms and biases.
        learning_rate_factors: Factors of the learning rate by the name of a weight: a regular expression that is
            searched for in it, such as `embed_tokens: 0.1`. The first that is found counts.
        non_finite: `stop` the run at a loss or gradient that is not finite, or `skip` that optimizer step; 5 in a row
            stop the run too.
        **options: All other options of PolicyModule.
    """

    nominal_count = 1.0  # keeps fp16 gradients in range; cancels out

    def __init__(
        self,
        model_name: str = "HuggingFaceTB/SmolLM-135M",
        *,
        learning_rate: float = 2e-5,
        optimizer: OptimizerCallable = lambda params: AdamW(params, weight_decay=0.0),
        beta2_half_life: float | None = None,
        schedule: Schedule | LRSchedulerCallable = Linear(),
        num_warmup_steps: int = 0,
        warmup_ratio: float = 0.0,
        decay_all: bool = False,
        learning_rate_factors: dict[str, float] | None = None,
        non_finite: Literal["stop", "skip"] = "stop",
        **options: Any,
    ) -> None:
        super().__init__(model_name, **options)
        if not 0 < learning_rate < math.inf:
            raise ValueError(f"`model.learning_rate` must be greater than 0 and finite, got {learning_rate}")
        self.learning_rate = learning_rate
        self.optimizer = Shared(optimizer)
        self.half_life = HalfLife(beta2_half_life) if beta2_half_life is not None else None
        self.rates = LearningRates(schedule, num_warmup_steps, warmup_ratio)
        if isinstance(self.rates.schedule, Schedule):
            self.save_hyperparameters({"schedule": SCHEDULE.as_settings(self.rates.schedule)})
        self.groups = ParameterGroups(learning_rate_factors or {}, decay_all=decay_all)
        self.non_finite = non_finite
        self.window = Window()
        self.gradient_norm: Tensor | None = None
        self.lost_steps = LostSteps()
        self.logged_step: int | None = None  # since training started
        self.row_values: RowValues | None = None  # of the last micro-batch, for who keeps the losses of rows

    # ---- to be overridden

    @abstractmethod
    def step(self, batch: Batch, stage: str) -> SumAndCount:
        """Update the stage's metrics; return the sum of the loss over the micro-batch, and the count to divide it by.

        Only the sum and the count over all micro-batches and devices are divided by each other.
        """

    # ---- Lightning's hooks: steps

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The micro-batch's part of the loss."""
        loss_sum, count = self.step(batch, "train")
        self.window.add(loss_sum, count, batch.example_ids)
        return loss_sum / self.nominal_count

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Update the metrics of the validation set; loaders without names make up one set."""
        self.step(batch, self.val_stages[dataloader_idx if len(self.val_stages) > 1 else 0])

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Update the test metrics."""
        self.step(batch, "test")

    # ---- Lightning's hooks: one optimizer step

    def on_fit_start(self) -> None:
        """Refuse settings that would fail at the first step; enable dropout and checkpointing."""
        self.policy.train()
        self.window.clear()
        if self.attention == "flex_attention" and self.device.type == "cpu":
            raise ValueError("`model.attention: flex_attention` can't be trained on a CPU: use `documents`")
        limit = self.trainer.gradient_clip_val
        if limit is not None and not math.isfinite(limit):
            raise ValueError(f"`trainer.gradient_clip_val` must be finite, got {limit}: null does not clip")
        refuse_fused_with_scaler(self.trainer)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Divide the gradients by the count over all micro-batches and ranks: here the sum becomes the mean of eq. 7.

        Stops, or skips the step, if the loss or the gradient norm is not finite.
        """
        totals = self.window.totals(self.trainer.strategy)
        parts = self.nominal_count * self.trainer.accumulate_grad_batches * self.trainer.world_size
        factor = parts / torch.where(totals[1] > 0, totals[1], 1.0)
        self.gradient_norm = gradient_norm(self.policy) * factor
        loss_sum, norm, count = torch.stack([totals[0], self.gradient_norm.to(totals), totals[1]]).tolist()
        # Division and clipping in one pass: each pass over all gradients takes time.
        scale_gradients(self.policy.parameters(), factor * self._clip_factor(self.gradient_norm))
        if math.isfinite(loss_sum) and math.isfinite(norm):
            self.lost_steps.note_finite(count)
        else:
            self._on_non_finite(loss_sum / max(count, 1), norm)
        self.window.clear()

    def _clip_factor(self, norm: Tensor) -> Tensor | float:
        """Factor that reduces the gradients' norm to `trainer.gradient_clip_val`, with every strategy.

        Lightning's own clipping by norm refuses FSDP.
        """
        limit = self.trainer.gradient_clip_val
        if limit is None or limit <= 0 or self.trainer.gradient_clip_algorithm == "value":  # 0 and below mean off
            return 1.0
        return (limit / (norm + 1e-6)).clamp(max=1.0)

    def _on_non_finite(self, loss: float, norm: float) -> None:
        step, rate = self.trainer.global_step + 1, self.current_learning_rate()
        bad = BadStep(step=step, loss=loss, gradient_norm=norm, learning_rate=rate, rows=self.window.rows())
        # fp16's GradScaler produces infinite gradients while it searches for its scale, and skips those steps itself.
        if math.isfinite(loss) and gradient_scaler(self.trainer) is not None:
            self.lost_steps.note_overflow(bad)
            return
        if self.non_finite == "stop":
            raise NonFiniteStepError(
                bad,
                ". The weights are those of the step before. Lower `model.learning_rate`, or set"
                " `model.non_finite: skip`. To see the loss of each row: python -m smollit replay"
                f" {shlex.quote(str(self.trainer.default_root_dir))} {step}",
            )
        self.lost_steps.note_skipped(bad)
        for parameter in self.policy.parameters():
            parameter.grad = None

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by value, if requested; clipping by norm is done in `on_before_optimizer_step`."""
        if gradient_clip_val and gradient_clip_val > 0 and gradient_clip_algorithm == "value":
            torch.nn.utils.clip_grad_value_(self.policy.parameters(), gradient_clip_val)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Keep the learning rate of this step: the schedule advances before it is logged."""
        self.used_learning_rate = self.current_learning_rate()
        super().optimizer_step(*args, **kwargs)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Log the step. SmollitTrainer does so before any callback saves a checkpoint; a plain Trainer, after it."""
        self.log_step(batch_idx)

    @property
    def logs_this_step(self) -> bool:
        """Also after the last step that is planned: it ends the last interval, however short."""
        is_last = self.trainer.global_step == self.rates.num_steps
        return super().logs_this_step or (is_last and self.trainer.log_every_n_steps > 0)  # type: ignore[attr-defined]

    def log_step(self, batch_idx: int) -> None:
        """Log, once, the means over all examples since the last log, every `log_every_n_steps` optimizer steps."""
        step = self.trainer.global_step
        if self.window or not self.logs_this_step or self.logged_step == step:
            return
        self.logged_step = step
        self.report(
            values(self.metrics_of("train"))
            | {
                "train/learning_rate": self.used_learning_rate,
                "train/gradient_norm": self.gradient_norm,
                "train/skipped_steps": float(self.lost_steps.skipped),
                "train/epoch": self.trainer.current_epoch + (batch_idx + 1) / self.trainer.num_training_batches,
            }
            | ({"train/overflowed_steps": float(self.lost_steps.overflowed)} if gradient_scaler(self.trainer) else {})
        )

    # ---- Lightning's hooks: the optimizer

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer over the policy's trainable parameters; the schedule counts optimizer steps."""
        optimizer = self.groups.optimizer(
            self.policy, self.optimizer, learning_rate=self.learning_rate, one_dimensional=self.one_dimensional
        )
        if self.half_life is not None:
            self.half_life.set(optimizer, self._loss_tokens_per_step())
        self.rates.set_steps(self.trainer.estimated_stepping_batches)
        scheduler = self.rates.scheduler(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _loss_tokens_per_step(self) -> float | None:
        data = self.trainer.datamodule  # type: ignore[attr-defined]  # Lightning declares it nowhere
        tokens = data.loss_tokens_per_batch() if isinstance(data, CountedTokens) else None
        return tokens * self.trainer.accumulate_grad_batches if tokens is not None else None

    def on_train_start(self) -> None:
        """Set the learning rate of the next step: after a resume, or a learning rate finder, it may be another."""
        super().on_train_start()
        self.logged_step = None
        configs = self.trainer.lr_scheduler_configs
        if configs:  # a learning rate finder takes ours away for its trial
            self.rates.set_steps(self.trainer.estimated_stepping_batches)
            self.rates.start(configs[0].scheduler, self.groups.peaks(self.learning_rate))

    def current_learning_rate(self) -> float:
        """Learning rate of the next optimizer step, of weights without a factor."""
        return float(self.trainer.optimizers[0].param_groups[0]["lr"]) / self.groups.of_groups[0]
