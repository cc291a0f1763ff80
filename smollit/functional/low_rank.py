"""Frozen linear layers with LoRA that have the same input: y_i = x W_i^T + c_i + x A_i^T B_i^T, for all i at once."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def low_rank_linears(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None], a: Sequence[Tensor], b: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """The outputs of the layers, with gradients of x, A and B.

    Layer by layer, there would be products of rank r, which are slow, and more tensors of the outputs' size. Here there
    is one product with all A, and all other products are added in place.

    Args:
        x: [..., in], of the dtype that all is computed in.
        weights: [out_i, in] each, frozen.
        biases: [out_i] or None each, frozen.
        a: [r_i, in] each.
        b: [out_i, r_i] each, times alpha / r.
    """
    ranks = tuple(len(each) for each in a)
    of_layers = [None if each is None else each.to(x.dtype) for each in (*weights, *biases, *b)]
    found: tuple[Tensor, ...] = LowRankLinears.apply(x, torch.cat(tuple(a)).to(x.dtype), ranks, *of_layers)
    return found


class LowRankLinears(torch.autograd.Function):
    """`low_rank_linears` of n layers. N tokens, R the sum of the ranks."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, a_RI: Tensor, ranks: tuple[int, ...], *of_layers: Tensor | None
    ) -> tuple[Tensor, ...]:
        """The products of low rank are added in the matrix product itself."""
        n = len(ranks)
        weights, biases, b = of_layers[:n], of_layers[n : 2 * n], of_layers[2 * n :]
        x_NI = x.flatten(0, -2)
        low_NR = x_NI @ a_RI.T
        outputs = []
        for weight, bias, b_OR, low in zip(weights, biases, b, low_NR.split(ranks, dim=1), strict=True):
            assert weight is not None
            assert b_OR is not None
            outputs.append(F.linear(x_NI, weight, bias).addmm_(low, b_OR.T).view(*x.shape[:-1], -1))
        ctx.save_for_backward(x_NI, a_RI, low_NR, *weights, *b)
        ctx.ranks, ctx.shape = ranks, x.shape
        ctx.set_materialize_grads(False)
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """The gradient of x is one sum, in one tensor. An output that was not used has none."""
        x_NI, a_RI, low_NR, *of_layers = ctx.saved_tensors
        n = len(ctx.ranks)
        lows = low_NR.split(ctx.ranks, dim=1)
        to_low_NR = torch.zeros_like(low_NR)
        to_lows = to_low_NR.split(ctx.ranks, dim=1)
        to_x_NI: Tensor | None = None
        to_b: list[Tensor | None] = [None] * n
        for i, (gradient, weight, b_OR) in enumerate(zip(gradients, of_layers[:n], of_layers[n:], strict=True)):
            if gradient is None:
                continue
            gradient_NO = gradient.flatten(0, -2)
            to_lows[i].copy_(gradient_NO @ b_OR)
            to_b[i] = gradient_NO.T @ lows[i]
            if ctx.needs_input_grad[0]:
                to_x_NI = gradient_NO @ weight if to_x_NI is None else to_x_NI.addmm_(gradient_NO, weight)
        if to_x_NI is not None:
            to_x_NI = to_x_NI.addmm_(to_low_NR, a_RI).view(ctx.shape)
        return to_x_NI, to_low_NR.T @ x_NI, None, *[None] * (2 * n), *to_b
