"""torch's `varlen_attn` and its backward pass, document by document, with the demands that the CUDA kernel has."""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

CALLS: Counter[str] = Counter()


def check(inputs: Sequence[Tensor], boundaries: Sequence[Tensor], longest: Sequence[int]) -> None:
    """Refuse what the kernel refuses, or what makes it read outside of its inputs.

    Raises:
        AssertionError: Names the demand.
    """
    dtypes, (query, key, value, *_) = {tensor.dtype for tensor in inputs}, inputs
    assert len(dtypes) == 1 and dtypes < {torch.float16, torch.bfloat16}, f"one half precision, got {dtypes}"
    assert all(tensor.stride(-1) == 1 for tensor in inputs), "the numbers of a head must be contiguous"
    for ends, most, rows in zip(boundaries, longest, ((query,), (key, value)), strict=True):
        assert ends.dtype == torch.int32 and ends.is_contiguous(), f"boundaries must be int32, got {ends.dtype}"
        assert type(most) is int and int(ends.diff().max()) <= most, f"a document is longer than {most}"
        assert all(len(tensor) == int(ends[-1]) for tensor in rows), f"boundaries end at {int(ends[-1])}"


def attend(
    query: Tensor, key: Tensor, value: Tensor, boundaries: Sequence[Tensor], scale: float | None, window: Sequence[int]
) -> Tensor:
    """Attention of each document, in fp32, whose last query attends to its last key: [T, heads, size]."""
    outputs, (left, right) = [], window
    for rows, columns in zip(*(pairwise(ends.tolist()) for ends in boundaries), strict=True):
        inputs = [tensor[slice(*part)].transpose(0, 1).float() for tensor, part in ((query, rows), (key, columns))]
        num_queries, num_keys = (tensor.shape[1] for tensor in inputs)
        distance = torch.arange(num_keys - num_queries, num_keys)[:, None] - torch.arange(num_keys)
        seen = (distance >= (0 if right == 0 else -num_keys)) & (distance <= (left if left >= 0 else num_keys))
        values = value[slice(*columns)].transpose(0, 1).float()
        output = scaled_dot_product_attention(*inputs, values, attn_mask=seen, scale=scale, enable_gqa=True)
        outputs.append(output.transpose(0, 1))
    return torch.cat(outputs).to(query.dtype)


def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_boundaries: Tensor,
    key_boundaries: Tensor,
    longest_query: int,
    longest_key: int,
    is_causal: bool = False,
    scale: float | None = None,
    window: Sequence[int] | None = None,
    *later: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """The output; the log-sum-exp and the random state that torch keeps beside it are left empty."""
    CALLS["forward"] += 1
    boundaries = (query_boundaries, key_boundaries)
    check((query, key, value), boundaries, (longest_query, longest_key))
    output = attend(query, key, value, boundaries, scale, (-1, 0) if is_causal else window or (-1, -1))
    return output, torch.zeros(0), torch.zeros(0)


def backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    log_sums: Tensor,
    query_boundaries: Tensor,
    key_boundaries: Tensor,
    longest_query: int,
    longest_key: int,
    is_causal: bool,
    random_state: Tensor,
    scale: float | None = None,
    window: Sequence[int] | None = None,
) -> tuple[Tensor, ...]:
    """The gradients of query, key and value."""
    CALLS["backward"] += 1
    boundaries = (query_boundaries, key_boundaries)
    check((query, key, value, gradient), boundaries, (longest_query, longest_key))

    def gradients() -> tuple[Tensor, ...]:
        inputs = [tensor.detach().requires_grad_() for tensor in (query, key, value)]
        again = attend(*inputs, boundaries, scale, (-1, 0) if is_causal else window or (-1, -1))
        return torch.autograd.grad(again, inputs, gradient)

    # An operation is called below autograd; a thread of its own begins above it.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(gradients).result()
