"""The attention mask of packed documents and their responses: one rule, in the form that each backend expects."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from smollit.batch import Document

# `documents`: document by document, without padding and without a mask, on any device.
# `sdpa`, `eager`: one mask over the padded sequences. `flex_attention`: a block mask, for GPUs.
# `flash_attention_2`: flash-attn's kernels for packed chats; it does not support responses that share a prompt.
AttentionBackend = Literal["documents", "sdpa", "eager", "flex_attention", "flash_attention_2"]
WITHOUT_PADDING: tuple[AttentionBackend, ...] = ("documents", "flash_attention_2")  # all sequences become one

# The CPU kernels also compute the keys that are masked for a whole block of queries, in strides of 512. In blocks of at
# most this many queries, each with the keys that it attends to, 300 to 700 positions take 10 to 20 % less time, forward
# and backward.
CPU_BLOCK = 256


def attention_mask(document_RT: Tensor, branch_RT: Tensor) -> Tensor:
    """Query q attends to key k if both are of one document, k is not later than q, and k is shared or of q's branch.

    Padding (document -1) attends to padding: no row of the mask is empty, so no softmax is NaN.

    Args:
        document_RT: [R, T] index of each token's document, -1 for padding.
        branch_RT: [R, T] 0 for shared tokens, 1..K for the responses.

    Returns:
        [R, T, T] bool, True where the query (dim 1) attends to the key (dim 2).

    Raises:
        ValueError: If the shapes differ.
    """
    if document_RT.shape != branch_RT.shape:
        raise ValueError(f"`branch` must be {tuple(document_RT.shape)} like `document`, got {tuple(branch_RT.shape)}")
    same_document = document_RT[:, :, None] == document_RT[:, None, :]
    query_branch, key_branch = branch_RT[:, :, None], branch_RT[:, None, :]
    same_branch = (key_branch == 0) | (key_branch == query_branch)
    length = document_RT.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=document_RT.device).tril()
    return same_document & same_branch & causal


def mask_for(backend: Literal["sdpa", "eager"], mask_RTT: Tensor, dtype: torch.dtype) -> Tensor:
    """The 4-D mask that a transformers attention backend expects: [R, T, T] bool -> [R, 1, T, T].

    `sdpa` takes the booleans; `eager` adds its mask to the scores, so it gets 0 and the lowest number of `dtype`.
    """
    mask = mask_RTT[:, None]
    if backend == "sdpa":
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)


def document_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Sequence[Document],
    *,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attention under the rule of `attention_mask`, document by document, for documents packed one after the other.

    The shared positions and the first response are one causal sequence. Every other response attends to the shared
    positions and causally to itself.

    Args:
        query: [1, Q, T, D], with Q heads.
        key: [1, K, T, D], with K heads; Q is a multiple of K.
        value: [1, K, T, D].
        layout: The documents, with T positions in all.
        scale: Factor of the scores; None is 1 / sqrt(D).
        dropout: Fraction of attention weights that are dropped.

    Returns:
        [1, Q, T, D].

    Raises:
        ValueError: If the documents do not have T positions.
    """
    if sum(document.length for document in layout) != query.shape[2]:
        total = sum(document.length for document in layout)
        raise ValueError(f"`layout` has {total} positions, and `query` {query.shape[2]}: they must be equal")
    # split(), not slices: its backward pass is one copy, not a tensor of all positions for each document.
    pieces = zip(*(tensor.split(_piece_lengths(layout), dim=2) for tensor in (query, key, value)), strict=True)
    outputs = []
    for shared, responses in layout:
        q, k, v = next(pieces)
        if q.shape[2]:
            outputs.append(_attend(q, k, v, scale=scale, dropout=dropout))
        for length in responses[1:]:
            own_q, own_k, own_v = next(pieces)
            if length:
                keys = torch.cat([k[:, :, :shared], own_k], dim=2)
                values = torch.cat([v[:, :, :shared], own_v], dim=2)
                outputs.append(_attend(own_q, keys, values, scale=scale, dropout=dropout))
    return _join(outputs)


def _piece_lengths(layout: Sequence[Document]) -> list[int]:
    """Positions of each document's shared part with its first response, and of every other response."""
    return [length for shared, responses in layout for length in (shared + sum(responses[:1]), *responses[1:])]


def _join(outputs: Sequence[Tensor]) -> Tensor:
    """Concatenate outputs along the positions. Kernels write heads after positions, so that this is one copy."""
    return torch.cat([output.transpose(1, 2) for output in outputs], dim=1).transpose(1, 2)


def _attend(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None, dropout: float) -> Tensor:
    """Causal attention of the last positions, those of `q`, over all positions, those of `k` and `v`."""
    count, total = q.shape[2], k.shape[2]
    groups = q.shape[1] // k.shape[1]
    num_blocks = math.ceil(count / CPU_BLOCK) if q.device.type == "cpu" else 1
    if num_blocks == 1 and count == total:
        return F.scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, is_causal=True, scale=scale, enable_gqa=groups > 1
        )
    if groups > 1:
        # With a mask, grouped heads would leave the fast kernels.
        k, v = (tensor.repeat_interleave(groups, dim=1) for tensor in (k, v))
    outputs, end = [], total - count
    for block in q.tensor_split(num_blocks, dim=2):
        start, end = end, end + block.shape[2]
        mask = torch.full((block.shape[2], end), -math.inf, dtype=q.dtype, device=q.device).triu_(start + 1)
        outputs.append(
            F.scaled_dot_product_attention(
                block, k[:, :, :end], v[:, :, :end], attn_mask=mask, dropout_p=dropout, scale=scale
            )
        )
    return _join(outputs)
