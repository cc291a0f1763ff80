"""AdamW for weights in bf16: the state, and a copy of the weights, in fp32."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.adamw import adamw

STATE = ("exp_avg", "exp_avg_sq", "master")


class AdamWFp32(Optimizer):
    """AdamW (https://arxiv.org/abs/1711.05101) that keeps moments and a master copy of the weights in fp32.

    For `trainer.precision: bf16-true`: a bf16 weight has 8 bits, and loses updates below 1/256 of its size. The
    master copy keeps them. With fp32 weights it equals torch's AdamW.

    Args:
        params: Weights, or groups of them.
        lr: Learning rate; in a smollit run, `model.learning_rate` sets it.
        betas: Decay of the two moments.
        eps: Added to the root of the second moment.
        weight_decay: Fraction of the weight, times the learning rate, that each step subtracts.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of all weights that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._step_group(group, [weight for weight in group["params"] if weight.grad is not None])
        return loss

    def _step_group(self, group: dict[str, Any], weights: list[Tensor]) -> None:
        for weight in weights:
            if not self.state[weight]:
                zeros = torch.zeros_like(weight, dtype=torch.float32)
                self.state[weight] = {"step": torch.zeros(()), "exp_avg": zeros, "exp_avg_sq": zeros.clone()}
                self.state[weight]["master"] = weight.detach().float().clone()
        states = [self.state[weight] for weight in weights]
        masters = [state["master"] for state in states]
        adamw(
            masters,
            [weight.grad.float() for weight in weights],  # type: ignore[union-attr]
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        for weight, master in zip(weights, masters, strict=True):
            weight.copy_(master)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state; torch would cast it to the weights' dtype."""
        super().load_state_dict(state_dict)
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        weights = [weight for group in self.param_groups for weight in group["params"]]
        for number, weight in zip(numbers, weights, strict=True):
            for name in STATE:
                if number in state_dict["state"]:
                    self.state[weight][name] = state_dict["state"][number][name].to(weight.device, copy=True)
