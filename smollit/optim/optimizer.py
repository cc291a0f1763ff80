"""The optimizer: its groups of weights, one learning rate, and checks for the gradient scaler."""

import inspect
import logging
import math
import re
from collections.abc import Mapping

from lightning.pytorch import Trainer
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.plugins.precision import FSDPPrecision, MixedPrecision
from torch import nn
from torch.amp import GradScaler
from torch.optim import Optimizer

log = logging.getLogger(__name__)


class ParameterGroups:
    """The groups of an optimizer: weights that share a factor of the learning rate, with and without weight decay.

    Args:
        factors: `model.learning_rate_factors`.
        decay_all: `model.decay_all`.
    """

    def __init__(self, factors: Mapping[str, float], *, decay_all: bool) -> None:
        for pattern, factor in factors.items():
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(
                    f"`model.learning_rate_factors`: {pattern!r} is no regular expression: {error}"
                ) from error
            if not 0 < factor < math.inf:
                raise ValueError(
                    f"`model.learning_rate_factors` of {pattern!r} must be greater than 0 and finite, got {factor}"
                )
        self.factors = factors
        self.decay_all = decay_all
        self.of_groups = [1.0]

    def optimizer(
        self, policy: nn.Module, make: OptimizerCallable, *, learning_rate: float, one_dimensional: frozenset[str]
    ) -> Optimizer:
        """An optimizer over the trainable weights, in one group unless decay or factors need more.

        Raises:
            ValueError: If a pattern of `model.learning_rate_factors` matches no weight.
        """
        weights = {unwrapped(name): weight for name, weight in policy.named_parameters() if weight.requires_grad}
        for pattern in self.factors:
            if not any(re.search(pattern, name) for name in weights):
                raise ValueError(f"`model.learning_rate_factors`: no trainable weight has {pattern!r} in its name")
        optimizer = make(list(weights.values()))
        for key, value in optimizer.param_groups[0].items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"`model.optimizer`: {key} must be finite, got {value}")
        decay = optimizer.param_groups[0].get("weight_decay", 0.0)
        spared = one_dimensional & weights.keys() if decay and not self.decay_all else frozenset()
        groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
        for name, weight in weights.items():
            groups.setdefault((self.factor(name), name in spared), []).append(weight)
        if spared:
            log.info("weight decay %g spares %s one-dimensional weights: `model.decay_all`", decay, len(spared))
        if len(groups) > 1:
            without = {False: {}, True: {"weight_decay": 0.0}}
            optimizer = make([{"params": weights} | without[is_spared] for (_, is_spared), weights in groups.items()])
        self.of_groups = [factor for factor, _ in groups]
        set_learning_rate(optimizer, learning_rate)
        for group, peak in zip(optimizer.param_groups, self.peaks(learning_rate), strict=True):
            group["lr"] = peak
        return optimizer

    def factor(self, name: str) -> float:
        """Factor of the learning rate of a weight."""
        return next((factor for pattern, factor in self.factors.items() if re.search(pattern, name)), 1.0)

    def peaks(self, learning_rate: float) -> list[float]:
        """The peak learning rate of each group."""
        return [learning_rate * factor for factor in self.of_groups]


def unwrapped(name: str) -> str:
    """The name of a weight without what FSDP puts into it."""
    return name.replace("_fsdp_wrapped_module.", "")


def set_learning_rate(optimizer: Optimizer, learning_rate: float) -> None:
    """Give every group the module's learning rate.

    Raises:
        ValueError: If the optimizer has a different one, or makes its own.
    """
    default = inspect.signature(type(optimizer)).parameters["lr"].default
    for group in optimizer.param_groups:
        if group["lr"] is None:
            raise ValueError(
                f"`model.optimizer` has no lr, so it makes its own: set its `lr` to `model.learning_rate`,"
                f" {learning_rate:g}, and of transformers' Adafactor `relative_step: false`"
            )
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
