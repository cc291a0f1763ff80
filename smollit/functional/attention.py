"""Who may see whom: one rule, rendered for each attention backend."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from smollit.batch import Document

# `documents`: each document by itself, without padding and without a mask, on any device.
# `sdpa`, `eager`: one mask over the padded rows. `flex_attention`: a block mask, for GPUs.
# `flash_attention_2`: flash-attn's kernels for rows of several chats; has no branches.
AttentionBackend = Literal["documents", "sdpa", "eager", "flex_attention", "flash_attention_2"]

# The CPU's kernels compute keys that no query of a block sees, in strides of 512. In blocks of at most so many queries,
# each with the keys that it sees, 300 to 700 positions take a tenth to a fifth less time, forward and backward.
CPU_BLOCK = 256
WITHOUT_PADDING: tuple[AttentionBackend, ...] = ("documents", "flash_attention_2")  # rows are joined for these


def visibility(document_RT: Tensor, branch_RT: Tensor) -> Tensor:
    """Position q sees position k if both are of one document, k is not after q, and k is shared or of q's branch.

    Padding (document -1) sees padding: its rows of the mask are never empty, so no softmax is NaN.

    Args:
        document_RT: [R, T] example of each token, -1 for padding.
        branch_RT: [R, T] 0 shared, 1 chosen, 2 rejected.

    Returns:
        [R, T, T] bool, True where the query (dim 1) sees the key (dim 2).

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


def render_mask(visible_RTT: Tensor, backend: Literal["sdpa", "eager"], dtype: torch.dtype) -> Tensor:
    """The 4-D mask that a transformers attention backend takes: [R, T, T] bool -> [R, 1, T, T].

    `sdpa` takes the booleans; `eager` adds its mask to the scores, so it gets 0 and the lowest number of `dtype`.
    """
    visible = visible_RTT[:, None]
    if backend == "sdpa":
        return visible
    lowest = torch.finfo(dtype).min
    return torch.zeros_like(visible, dtype=dtype).masked_fill(~visible, lowest)


def document_attention(
    query: Tensor, key: Tensor, value: Tensor, layout: Sequence[Document], scale: float | None, dropout: float = 0.0
) -> Tensor:
    """The rule of `visibility` for documents that stand one after the other, each by itself.

    Shared and chosen positions are one causal sequence. Rejected positions see the shared ones and their own.

    Args:
        query: [1, Q, T, D] of Q heads.
        key: [1, K, T, D] of K heads; Q is a multiple of K.
        value: [1, K, T, D].
        layout: The documents, with T positions in all.
        scale: Of the scores; None is 1 / sqrt(D).
        dropout: Share of attention weights that are dropped.

    Returns:
        [1, Q, T, D].

    Raises:
        ValueError: If the documents do not have T positions.
    """
    if sum(document.length for document in layout) != query.shape[2]:
        total = sum(document.length for document in layout)
        raise ValueError(f"`layout` has {total} positions, and `query` {query.shape[2]}: they must be equal")
    # split(), not slices: its backward pass is one copy, not a tensor of all positions for each document.
    lengths = [length for document in layout for length in (document.shared + document.chosen, document.rejected)]
    pieces = zip(*(tensor.split(lengths, dim=2) for tensor in (query, key, value)), strict=True)
    outputs = []
    for shared, chosen, rejected in layout:
        (q, k, v), (own_q, own_k, own_v) = next(pieces), next(pieces)
        if shared + chosen:
            outputs.append(_attend(q, k, v, scale, dropout))
        if rejected:
            k, v = (torch.cat([before[:, :, :shared], own], dim=2) for before, own in ((k, own_k), (v, own_v)))
            outputs.append(_attend(own_q, k, v, scale, dropout))
    # Kernels write heads behind positions, so that way round it is one copy.
    return torch.cat([output.transpose(1, 2) for output in outputs], dim=1).transpose(1, 2)


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float | None, dropout: float) -> Tensor:
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
    outputs, seen = [], total - count
    for block in q.tensor_split(num_blocks, dim=2):
        before, seen = seen, seen + block.shape[2]
        mask = torch.full((block.shape[2], seen), -math.inf, dtype=q.dtype, device=q.device).triu_(before + 1)
        outputs.append(
            F.scaled_dot_product_attention(
                block, k[:, :, :seen], v[:, :, :seen], attn_mask=mask, dropout_p=dropout, scale=scale
            )
        )
    return torch.cat([output.transpose(1, 2) for output in outputs], dim=1).transpose(1, 2)
