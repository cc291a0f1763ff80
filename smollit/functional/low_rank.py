"""result + scale * x A^T B^T, added into `result`: the forward pass of LoRA without its elementwise steps."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def add_low_rank(result: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Add a product of low rank to the output of a linear layer, in place.

    `result + scale * linear(linear(x, a), b)` makes and reads three more tensors of the output's size, and one more in
    the backward pass.

    Args:
        result: [..., out], fp32 or half precision. It is overwritten.
        x: [..., in]
        a: [rank, in]
        b: [out, rank]
        scale: alpha / r.
    """
    x, a, b = (tensor.to(result.dtype) for tensor in (x, a, b))  # as autocast does
    if torch.compiler.is_compiling():  # the compiler fuses the steps, and can't trace what writes in place
        return result + scale * (x @ a.T @ b.T)
    added: Tensor = AddLowRank.apply(result, x, a, b, scale)
    return added


class AddLowRank(torch.autograd.Function):
    """The product of `add_low_rank`, all of one dtype."""

    @staticmethod
    def forward(ctx: Any, result: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
        """Add in the matrix product itself."""
        low = x.flatten(0, -2) @ a.T
        result.view(-1, result.shape[-1]).addmm_(low, b.T, alpha=scale)
        ctx.mark_dirty(result)
        ctx.save_for_backward(x, a, b, low)
        ctx.scale = scale
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of `result` is that of the sum; scaled are the two tensors of low rank."""
        x, a, b, low = ctx.saved_tensors
        flat = gradient.flatten(0, -2)
        scaled = (flat @ b).mul_(ctx.scale)
        to_x = (scaled @ a).view(x.shape) if ctx.needs_input_grad[1] else None
        return gradient, to_x, scaled.T @ x.flatten(0, -2), (flat.T @ low).mul_(ctx.scale), None
