"""The optimizer and its learning rate: one setting, `model.learning_rate`, whatever the optimizer."""

import inspect
from typing import Literal

from torch.optim import Optimizer

Schedule = Literal["linear", "cosine", "constant_with_warmup", "constant"]


def set_learning_rate(optimizer: Optimizer, learning_rate: float) -> None:
    """Give every group the module's learning rate.

    Raises:
        ValueError: If the optimizer was given another one: two settings of one thing.
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
