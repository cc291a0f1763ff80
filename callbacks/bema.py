"""BEMA: an average of the weights that does not lag behind them."""

import logging
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from smollit.models.sharding import is_sharded
from smollit.modules import FineTuningModule
from smollit.training.steps import at_step_end

log = logging.getLogger(__name__)
KEY = "bema"  # of what a checkpoint holds besides the averages
Weights = dict[str, Tensor]


class BEMA(Callback):
    """Averages the trained weights without the lag of an exponential moving average: https://arxiv.org/abs/2508.00180.

    With w_t the weights after optimizer step t, every `update_every_n_steps` steps,

        EMA_t = (1 - beta_t) EMA + beta_t w_t,      beta_t = (lag + multiplier t)^-ema_power
        average_t = EMA_t + alpha_t (w_t - w_0),    alpha_t = (lag + multiplier t)^-bias_power

    where EMA is that of the update before, and at first w_0. Validation, and the model at the end of training, use the
    average. Checkpoints hold it as the weights, and what training needs besides: a resumed run equals one that never
    stopped. Lightning's WeightAveraging keeps one average, in a copy of the whole module. This callback keeps three
    copies of the trained weights alone, so it is small beside an adapter.

    Args:
        update_every_n_steps: Optimizer steps between two updates of the average.
        update_starting_at_step: The step whose weights are w_0; until then, the average is the weights themselves.
        ema_power: How fast beta falls, kappa in the paper; 0 follows the weights without averaging.
        bias_power: How fast the correction alpha falls, eta in the paper; a large number turns it off.
        lag: Steps by which beta and alpha are ahead, rho in the paper.
        multiplier: Factor of the step in beta and alpha, gamma in the paper.
        device: Where the copies are; null is the device of the weights, `cpu` saves the memory of a GPU.
    """

    def __init__(
        self,
        update_every_n_steps: int = 400,
        *,
        update_starting_at_step: int = 0,
        ema_power: float = 0.5,
        bias_power: float = 0.2,
        lag: float = 10.0,
        multiplier: float = 1.0,
        device: str | None = None,
    ) -> None:
        if update_every_n_steps < 1 or update_starting_at_step < 0:
            raise ValueError(
                "BEMA needs `update_every_n_steps` of at least 1 and `update_starting_at_step` of at least 0, got"
                f" {update_every_n_steps} and {update_starting_at_step}"
            )
        if ema_power < 0 or bias_power < 0 or lag < 0 or multiplier < 0 or lag + multiplier < 1:
            raise ValueError(
                "BEMA needs an `ema_power`, `bias_power`, `lag` and `multiplier` of at least 0, and a sum of the last"
                f" two of at least 1, got {ema_power}, {bias_power}, {lag} and {multiplier}"
            )
        self.update_every_n_steps = update_every_n_steps
        self.update_starting_at_step = update_starting_at_step
        self.ema_power = ema_power
        self.bias_power = bias_power
        self.lag = lag
        self.multiplier = multiplier
        self.device = device
        self.start: Weights = {}
        self.ema: Weights = {}
        self.average: Weights = {}  # the weights in training, while the module has the average
        self.is_swapped = False  # whether the module has the average
        self.is_training = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget an earlier run."""
        if not isinstance(pl_module, FineTuningModule):
            raise ValueError(f"BEMA averages the policy of a smollit module, got {type(pl_module).__name__}")
        self.start, self.ema, self.average = {}, {}, {}
        self.is_swapped = self.is_training = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a run that would end before the first update; begin, unless the run was resumed."""
        first = self.update_starting_at_step + self.update_every_n_steps
        is_rehearsal = trainer.fast_dev_run  # type: ignore[attr-defined]
        if trainer.estimated_stepping_batches < first and not is_rehearsal:
            raise ValueError(
                f"the run has {int(trainer.estimated_stepping_batches)} optimizer steps, and BEMA updates its average"
                f" at step {first} for the first time: set a smaller `update_every_n_steps`"
            )
        weights = trained_weights(pl_module)
        self._show(pl_module, average=False)
        if not self.average:
            self._begin(weights)
        self.is_training = True
        self.start, self.ema, self.average = (
            {name: value.to(self.device or weights[name].device) for name, value in copies.items()}
            for copies in (self.start, self.ema, self.average)
        )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the average at the end of the optimizer step."""
        step, begins = trainer.global_step, self.update_starting_at_step
        if not at_step_end(trainer):
            return
        if step <= begins:
            self._begin(trained_weights(pl_module))
        elif (step - begins) % self.update_every_n_steps == 0:
            self._update(trained_weights(pl_module), step)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._show(pl_module, average=True)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._show(pl_module, average=not self.is_training)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the average in the module."""
        self.is_training = False
        self._show(pl_module, average=True)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the average as the weights, and the weights in training beside them."""
        if not self.average:
            return
        own = trained_weights(pl_module)
        averages, weights = (own, self.average) if self.is_swapped else (self.average, own)
        # By storage: a head that is tied to the embeddings has a second name.
        found = {weight.data_ptr(): averages[name] for name, weight in own.items()}
        saved: Weights = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: found.get(value.data_ptr(), value) for name, value in saved.items()}
        checkpoint[KEY] = {"weights": weights, "start": self.start, "ema": self.ema}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Resume: the module, which has loaded the average, gets the weights in training once it trains."""
        if trainer.state.fn != "fit":
            return
        if KEY not in checkpoint:
            log.info("BEMA begins at step %s: the checkpoint was saved without it", checkpoint["global_step"])
            return
        saved: dict[str, Weights] = checkpoint[KEY]
        self.start, self.ema, self.average = (
            {name: value.clone() for name, value in saved[key].items()} for key in ("start", "ema", "weights")
        )
        self.is_swapped = True

    def _begin(self, weights: Weights) -> None:
        """Average from these weights on; in fp32 at least, since an average moves in small steps."""
        wide = {name: torch.promote_types(weight.dtype, torch.float32) for name, weight in weights.items()}
        self.start = {n: weight.to(self.device or weight.device, wide[n], copy=True) for n, weight in weights.items()}
        self.ema = {name: weight.clone() for name, weight in self.start.items()}
        self.average = {n: weight.to(self.device or weight.device, copy=True) for n, weight in weights.items()}

    def _update(self, weights: Weights, step: int) -> None:
        age = self.lag + self.multiplier * step
        beta, alpha = age**-self.ema_power, age**-self.bias_power
        for name, weight in weights.items():
            ema, now = self.ema[name], weight.to(self.ema[name])
            ema.lerp_(now, beta)
            self.average[name].copy_(ema + alpha * (now - self.start[name]))

    def _show(self, module: LightningModule, *, average: bool) -> None:
        """Let the module have the average, or the weights in training; in `validate` it has what it loaded."""
        if not self.average or self.is_swapped == average:
            return
        for name, weight in trained_weights(module).items():
            held = weight.clone()
            weight.copy_(self.average[name])
            self.average[name].copy_(held)
        self.is_swapped = average


def trained_weights(module: LightningModule) -> Weights:
    """The weights that training changes, by name, without gradients.

    Raises:
        ValueError: If each device holds only a part of them.
    """
    assert isinstance(module, FineTuningModule), "setup() refuses others"
    if is_sharded(module.policy):
        raise ValueError("BEMA can't average a sharded model: set `trainer.strategy: ddp`, or leave BEMA out")
    return {name: weight.detach() for name, weight in module.policy.named_parameters() if weight.requires_grad}
