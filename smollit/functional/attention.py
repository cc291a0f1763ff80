"""The attention mask of packed documents and their responses: one rule, in the form that each backend expects."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from smollit.batch import Document

# `varlen`: one call of a kernel for all documents, on CUDA in half precision, without padding and without a mask.
# `documents`: the same document by document, on any device.
# `sdpa`, `eager`: one mask over the padded sequences. `flex_attention`: a block mask, for GPUs.
# `rows`: the model's own attention, one padded sequence for each chat or response.
AttentionBackend = Literal["varlen", "documents", "sdpa", "eager", "flex_attention", "rows"]
AttentionSetting = Literal["auto", "varlen", "documents", "sdpa", "eager", "flex_attention", "rows"]
WITHOUT_PADDING: tuple[AttentionSetting, ...] = ("auto", "varlen", "documents")  # all sequences become one

# The CPU kernels also compute the keys that are masked for a whole block of queries, in strides of 512. In blocks of at
# most this many queries, each with the keys that it attends to, 300 to 700 positions take 10 to 20 % less time, forward
# and backward.
CPU_BLOCK = 256

# On CUDA, cuDNN would build a graph for each new shape, and documents have many lengths.
NOT_PER_SHAPE = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class ScoreOptions(NamedTuple):
    """What a layer does with its attention scores.

    Args:
        scale: Factor of the scores; None is 1 / sqrt(D).
        dropout: Fraction of attention weights that are dropped.
        window: Number of positions that a query attends to, its own included; None for all.
        softcap: The scores become softcap * tanh(scores / softcap); None leaves them.
    """

    scale: float | None = None
    dropout: float = 0.0
    window: int | None = None
    softcap: float | None = None


def attention_mask(
    document_RT: Tensor, branch_RT: Tensor, *, position_RT: Tensor | None = None, window: int | None = None
) -> Tensor:
    """Query q attends to key k if both are of one document, k is not later than q, and k is shared or of q's branch.

    With a sliding window, k is also less than `window` positions before q. Padding (document -1) attends to padding: no
    row of the mask is empty, so no softmax is NaN.

    Args:
        document_RT: [R, T] index of each token's document, -1 for padding.
        branch_RT: [R, T] 0 for shared tokens, 1..K for the responses.
        position_RT: [R, T] index of the token in prompt and response; only a window needs it.
        window: Number of positions that a query attends to, its own included; None for all.

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
    mask = same_document & same_branch & causal
    if window is not None:
        assert position_RT is not None, "a window is counted in positions"
        mask &= position_RT[:, :, None] - position_RT[:, None, :] < window
    return mask


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
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Attention under the rule of `attention_mask`, document by document, for documents packed one after the other.

    The shared positions and the first response are one causal sequence. Every other response attends to the shared
    positions and causally to itself.

    Args:
        query: [1, Q, T, D], with Q heads.
        key: [1, K, T, D], with K heads; Q is a multiple of K.
        value: [1, K, T, D].
        layout: The documents, with T positions in all.
        scale, dropout, window, softcap: As in `ScoreOptions`.

    Returns:
        [1, Q, T, D].

    Raises:
        ValueError: If the documents do not have T positions.
    """
    if sum(document.length for document in layout) != query.shape[2]:
        total = sum(document.length for document in layout)
        raise ValueError(f"`layout` has {total} positions, and `query` {query.shape[2]}: they must be equal")
    options = ScoreOptions(scale, dropout, window, softcap)
    with sdpa_kernel(NOT_PER_SHAPE) if query.is_cuda else nullcontext():
        return _by_document(query, key, value, layout, options)


def _by_document(
    query: Tensor, key: Tensor, value: Tensor, layout: Sequence[Document], options: ScoreOptions
) -> Tensor:
    # split(), not slices: its backward pass is one copy, not a tensor of all positions for each document.
    pieces = zip(*(tensor.split(_piece_lengths(layout), dim=2) for tensor in (query, key, value)), strict=True)
    outputs = []
    for shared, responses in layout:
        q, k, v = next(pieces)
        if q.shape[2]:
            outputs.append(_attend(q, k, v, options))
        for length in responses[1:]:
            own_q, own_k, own_v = next(pieces)
            if length:
                keys = torch.cat([k[:, :, :shared], own_k], dim=2)
                values = torch.cat([v[:, :, :shared], own_v], dim=2)
                outputs.append(_attend(own_q, keys, values, options))
    return _join(outputs)


def _piece_lengths(layout: Sequence[Document]) -> list[int]:
    """Positions of each document's shared part with its first response, and of every other response."""
    return [length for shared, responses in layout for length in (shared + sum(responses[:1]), *responses[1:])]


def _join(outputs: Sequence[Tensor]) -> Tensor:
    """Concatenate outputs along the positions. Kernels write heads after positions, so that this is one copy."""
    return torch.cat([output.transpose(1, 2) for output in outputs], dim=1).transpose(1, 2)


def _attend(q: Tensor, k: Tensor, v: Tensor, options: ScoreOptions) -> Tensor:
    """Causal attention of the last positions, those of `q`, over all positions, those of `k` and `v`."""
    count, total = q.shape[2], k.shape[2]
    groups = q.shape[1] // k.shape[1]
    num_blocks = math.ceil(count / CPU_BLOCK) if q.device.type == "cpu" else 1
    # A window is no limit for a sequence that is not longer.
    window = options.window if options.window is not None and options.window < total else None
    if num_blocks == 1 and count == total and window is None and options.softcap is None:
        return F.scaled_dot_product_attention(
            q, k, v, dropout_p=options.dropout, is_causal=True, scale=options.scale, enable_gqa=groups > 1
        )
    if groups > 1:
        # With a mask, grouped heads would leave the fast kernels.
        k, v = (tensor.repeat_interleave(groups, dim=1) for tensor in (k, v))
    outputs, end = [], total - count
    for block in q.tensor_split(num_blocks, dim=2):
        start, end = end, end + block.shape[2]
        first = 0 if window is None else max(0, start - window + 1)
        mask = torch.full((block.shape[2], end - first), -math.inf, dtype=q.dtype, device=q.device)
        if window is None:
            mask.triu_(start + 1)
        else:
            mask = mask.triu(start - first + 1) + mask.tril(start - first - window)
        outputs.append(_weighted_sum(block, k[:, :, first:end], v[:, :, first:end], mask, options))
    return _join(outputs)


def _weighted_sum(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, options: ScoreOptions) -> Tensor:
    """softmax(scores + mask) v. torch's fused kernels know no softcap."""
    if options.softcap is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=options.dropout, scale=options.scale)
    scores = q @ k.transpose(2, 3) * (q.shape[3] ** -0.5 if options.scale is None else options.scale)
    scores = options.softcap * torch.tanh(scores / options.softcap) + mask
    weights = torch.softmax(scores, dim=3, dtype=torch.float32).to(q.dtype)
    return F.dropout(weights, options.dropout) @ v
