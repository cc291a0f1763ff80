"""Attention of joined documents in one call of a kernel for sequences of different lengths: torch's varlen_attn.

Shapes: T positions of all documents, S sequences of queries with their keys, D size of a head.
"""

import math
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from smollit.batch import Joined
from smollit.functional.attention import ScoreOptions


class VarlenKernel(Protocol):
    """Causal attention of sequences that follow one another: the last query of a sequence attends to its last key."""

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, joined: Joined, *, options: ScoreOptions) -> Tensor:
        """[queries, heads, D] attends to [keys, key heads, D], both with the S + 1 boundaries of `joined`."""


def joined_attention(
    query: Tensor, key: Tensor, value: Tensor, joined: Joined, *, kernel: VarlenKernel, options: ScoreOptions
) -> Tensor:
    """Attention under the rule of `functional.attention.attention_mask`, in one call of the kernel.

    A chat is one sequence. A prompt with its first response is one, too; the keys of every other response are those of
    the prompt and its own.

    Args:
        query: [1, Q, T, D], with Q heads.
        key: [1, K, T, D], with K heads; Q is a multiple of K.
        value: [1, K, T, D].
        joined: The documents, with T positions in all.
        kernel: The kernel.
        options: Scale and window of the scores; a kernel knows neither dropout nor softcap.

    Returns:
        [1, Q, T, D].
    """
    assert options.dropout == 0.0
    assert options.softcap is None
    # squeeze and unsqueeze are views in both directions; indexing copies in the backward pass.
    q, k, v = (tensor.transpose(1, 2).squeeze(0) for tensor in (query, key, value))
    if joined.key_positions is not None:
        k, v = (tensor.index_select(0, joined.key_positions) for tensor in (k, v))
    output = kernel(q, k, v, joined, options=options)
    return output.unsqueeze(0).transpose(1, 2)


def varlen_reference(query: Tensor, key: Tensor, value: Tensor, joined: Joined, *, options: ScoreOptions) -> Tensor:
    """The rule of torch's varlen_attn in plain torch, sequence by sequence: for tests, and where there is no CUDA.

    Query i of m attends to keys i + n - m - window + 1 .. i + n - m of n: causality lines up at the end.
    """
    groups = query.shape[1] // key.shape[1]
    scale = options.scale if options.scale is not None else 1 / math.sqrt(query.shape[2])
    window = options.window if options.window is not None else joined.longest_key
    boundaries = (pairwise(each.tolist()) for each in (joined.query_boundaries, joined.key_boundaries))
    outputs = []
    for (first_q, end_q), (first_k, end_k) in zip(*boundaries, strict=True):
        q = query[first_q:end_q].transpose(0, 1)
        k, v = (each[first_k:end_k].transpose(0, 1).repeat_interleave(groups, dim=0) for each in (key, value))
        scores = q @ k.transpose(1, 2) * scale
        distance = torch.arange(q.shape[1])[:, None] + (k.shape[1] - q.shape[1]) - torch.arange(k.shape[1])
        blocked = (distance < 0) | (distance >= window)
        outputs.append((scores.masked_fill(blocked.to(scores.device), -math.inf).softmax(dim=2) @ v).transpose(0, 1))
    return torch.cat(outputs)
