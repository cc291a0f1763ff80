"""Adam's beta2 by its half-life in tokens, so that its memory does not depend on the size of a step."""

import inspect
import math

from torch.optim import Optimizer


class HalfLife:
    """The loss tokens after which a gradient counts half in Adam's second moment: https://arxiv.org/abs/2507.07101.

    beta2 = 0.5^(loss tokens per step / half-life). A run with half the rows in a step has the square root of the beta2.

    Args:
        tokens: `model.beta2_half_life`.
    """

    def __init__(self, tokens: float) -> None:
        if not 0 < tokens < math.inf:
            raise ValueError(f"`model.beta2_half_life` must be greater than 0 and finite, got {tokens}")
        self.tokens = tokens
        self.tokens_per_step = 0.0

    @property
    def beta2(self) -> float:
        """The beta2 of these steps."""
        return float(0.5 ** (self.tokens_per_step / self.tokens))

    def set(self, optimizer: Optimizer, tokens_per_step: float | None) -> None:
        """Set the beta2 of all groups.

        Args:
            optimizer: The optimizer.
            tokens_per_step: Mean number of loss tokens of an optimizer step; None if it is unknown.

        Raises:
            ValueError: If it is unknown, or the optimizer has no beta2, or one that was set.
        """
        name, betas = type(optimizer).__name__, inspect.signature(type(optimizer)).parameters.get("betas")
        if betas is None:
            raise ValueError(f"`model.beta2_half_life` sets Adam's beta2, and {name} has no `betas`: leave it out")
        if tokens_per_step is None:
            raise ValueError(
                "`model.beta2_half_life` needs the loss tokens of a step, which a stream, and a data module of your"
                " own, do not count: set `model.optimizer.betas`"
            )
        self.tokens_per_step = tokens_per_step
        for group in optimizer.param_groups:
            beta1, own, *others = group["betas"]
            if betas.default is betas.empty or own != betas.default[1]:
                raise ValueError(
                    f"`model.optimizer.betas` has a beta2 of {own:g}, and `model.beta2_half_life` would set"
                    f" {self.beta2:g}: set only one of them"
                )
            group["betas"] = (beta1, self.beta2, *others)

    def describe(self) -> str:
        """`0.9931, half-life 1,000,000 loss tokens at 10,000 per step`."""
        return f"{self.beta2:.6g}, half-life {self.tokens:,.0f} loss tokens at {self.tokens_per_step:,.0f} per step"
