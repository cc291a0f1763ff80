"""Both heads against torch's own linear_cross_entropy: the same loss and gradients by other code."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from smollit.functional.logps import summed_logps, token_logps

pytestmark = pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="this torch has no linear_cross_entropy")
CHUNK = 16
LENGTHS = (30, 20)
RELATIVE = 3e-7  # a few roundings of fp32: sums over 211 words and 50 tokens have another order


def head() -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states [50, 24], weight [211, 24] and labels [50], fp32."""
    random = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(rows, 24, generator=random) for rows in (sum(LENGTHS), 211))
    return hidden, weight, torch.randint(211, (sum(LENGTHS),), generator=random)


def torchs(chunked: bool) -> list[Tensor]:
    """Loss, and gradients of hidden states and weight, by torch: whole logits, or its own chunks."""
    hidden, weight, labels = head()
    hidden.requires_grad_(), weight.requires_grad_()
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=CHUNK) if chunked else None
    loss = F.linear_cross_entropy(hidden, weight, labels, reduction="sum", options=options)
    return [loss, *torch.autograd.grad(loss, (hidden, weight))]


def ours(name: str) -> list[Tensor]:
    """The same by one of our heads."""
    hidden, weight, labels = head()
    hidden.requires_grad_(), weight.requires_grad_()
    if name == "token_logps":
        logps = token_logps(hidden, weight, labels, chunk_size=CHUNK).logps
    else:
        logps = summed_logps(hidden, weight, labels, lengths=LENGTHS, chunk_size=CHUNK).sums
    loss = -logps.sum()
    return [loss, *torch.autograd.grad(loss, (hidden, weight))]


# promise: chunked-head
@pytest.mark.parametrize("chunked", [False, True], ids=["whole logits", "chunks"])
@pytest.mark.parametrize("name", ["token_logps", "summed_logps"])
def test_loss_and_gradients_are_torchs(name: str, chunked: bool) -> None:
    """The norm of each difference is at most 3e-7 of the norm of torch's value."""
    for found, expected in zip(ours(name), torchs(chunked), strict=True):
        assert (found - expected).norm() <= RELATIVE * expected.norm()
