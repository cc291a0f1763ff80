"""low_rank_linears against the formula that it stands for."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from smollit.functional.low_rank import low_rank_linears


def draw(dtype: torch.dtype) -> tuple[Tensor, list[Tensor], list[Tensor | None], list[Tensor], list[Tensor]]:
    """x of 2 x 5 tokens and 6 inputs; weights; biases, of which the second layer has none; a; b."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    x, weights = random(2, 5, 6).requires_grad_(), [random(7, 6), random(4, 6)]
    a, b = ([random(*shape).requires_grad_() for shape in shapes] for shapes in (((3, 6), (2, 6)), ((7, 3), (4, 2))))
    return x, weights, [random(7), None], a, b


def plain(x: Tensor, *of_layers: Sequence[Tensor | None]) -> list[Tensor]:
    """x W^T + c + x A^T B^T of each layer."""
    found = []
    for weight, bias, a, b in zip(*of_layers, strict=True):
        assert weight is not None and a is not None and b is not None
        found.append(x @ weight.T + (0 if bias is None else bias) + x @ a.T @ b.T)
    return found


# promise: adapters
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("used", [(0, 1), (1,)], ids=str)
def test_the_sums_are_those_of_plain_torch(dtype: torch.dtype, used: tuple[int, ...]) -> None:
    """Outputs, and the gradients of their squares, of both layers or of the second alone; in bf16 to its rounding."""
    found = []
    for linears in (low_rank_linears, plain):
        x, weights, biases, a, b = draw(dtype)
        outputs = linears(x, weights, biases, a, b)
        sum(outputs[layer].square().sum() for layer in used).backward()
        of_used = [(outputs[layer].detach(), a[layer].grad, b[layer].grad) for layer in used]
        found.append([x.grad, *of_used])
    torch.testing.assert_close(*found, **({"rtol": 3e-2, "atol": 0.5} if dtype == torch.bfloat16 else {}))


def test_frozen_inputs_and_weights_in_fp32_below_a_half_precision_output() -> None:
    """As under autocast: fp32 weights get fp32 gradients, and an x without gradient gets none."""
    x, weights, biases, a, b = draw(torch.float32)
    x = x.detach()
    first, _ = low_rank_linears(x.bfloat16(), weights, biases, a, [2 * each for each in b])
    first.float().sum().backward()
    assert first.dtype == torch.bfloat16 and x.grad is None
    assert a[0].grad is not None and a[0].grad.dtype == torch.float32
    assert b[0].grad is not None and not a[1].grad.any()
    torch.testing.assert_close(b[0].grad, (2 * (x @ a[0].T).sum((0, 1))).expand(7, 3).detach(), rtol=3e-2, atol=0.1)
