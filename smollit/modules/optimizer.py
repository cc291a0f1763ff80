"""The optimizer: one learning rate, `model.learning_rate`, and checks for the gradient scaler."""

import inspect
from typing import Literal

from lightning.pytorch import Trainer
from lightning.pytorch.plugins.precision import FSDPPrecision, MixedPrecision
from torch.amp import GradScaler
from torch.optim import Optimizer

Schedule = Literal["linear", "cosine", "constant_with_warmup", "constant"]


def set_learning_rate(optimizer: Optimizer, learning_rate: float) -> None:
    """Give every group the module's learning rate.

    Raises:
        ValueError: If the optimizer has a different one.
    """
    default = inspect.signature(type(optimizer)).parameters["lr"].default
    for group in optimizer.param_groups:
        own = float(group["lr"])
        if own not in (learning_rate, default):
            raise ValueError(
                f"`model.optimizer` has lr {own:g}, and `model.learning_rate` is {learning_rate:g}:"
                " set only `model.learning_rate`"
            )
        group["lr"] = learning_rate


def gradient_scaler(trainer: Trainer) -> GradScaler | None:
    """The scaler of `16-mixed`, or None for every other precision."""
    precision = trainer.precision_plugin
    return precision.scaler if isinstance(precision, MixedPrecision | FSDPPrecision) else None


def refuse_fused_with_scaler(trainer: Trainer) -> None:
    """Refuse a fused optimizer with `16-mixed`.

    Raises:
        ValueError: If the optimizer would unscale the gradients after they were clipped.
    """
    fused = any(group.get("fused") for optimizer in trainer.optimizers for group in optimizer.param_groups)
    if fused and gradient_scaler(trainer) is not None:
        raise ValueError(
            "a fused optimizer can't be used with `trainer.precision: 16-mixed`: it would unscale gradients after"
            " they were clipped. Set `fused: false`, or use bf16-mixed"
        )
