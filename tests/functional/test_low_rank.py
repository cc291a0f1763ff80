"""add_low_rank against the formula that it stands for."""

import pytest
import torch

from smollit.functional.low_rank import add_low_rank


def draw(dtype: torch.dtype) -> list[torch.Tensor]:
    """result, x, a, b of 2 x 5 tokens, 6 inputs, 7 outputs and rank 3."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 5, 7), (2, 5, 6), (3, 6), (7, 3))
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


# promise: adapters
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_sum_is_that_of_plain_torch(dtype: torch.dtype) -> None:
    """result + 0.5 x A^T B^T, and the gradients of its square; in bf16 to its rounding."""
    found = []
    for in_place in (True, False):
        result, x, a, b = leaves = draw(dtype)
        total = add_low_rank(result * 1, x, a, b, 0.5) if in_place else result + 0.5 * (x @ a.T @ b.T)
        total.square().sum().backward()
        found.append([total.detach(), *(leaf.grad for leaf in leaves)])
    torch.testing.assert_close(*found, **({"rtol": 3e-2, "atol": 0.5} if dtype == torch.bfloat16 else {}))


def test_frozen_inputs_and_weights_in_fp32_below_a_half_precision_output() -> None:
    """As under autocast: fp32 weights get fp32 gradients, and an x without gradient gets none."""
    result, x, a, b = (leaf.detach() for leaf in draw(torch.float32))
    a.requires_grad_(), b.requires_grad_()
    total = add_low_rank(result.bfloat16(), x, a, b, 2.0)
    total.float().sum().backward()
    assert total.dtype == torch.bfloat16 and x.grad is None
    assert a.grad is not None and a.grad.dtype == torch.float32
    torch.testing.assert_close(b.grad, (2 * (x @ a.T).sum((0, 1))).expand(7, 3).detach(), rtol=3e-2, atol=0.1)
