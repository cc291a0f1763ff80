"""Who may see whom: one rule, rendered for each attention backend."""

from typing import Literal

import torch
from torch import Tensor

AttentionBackend = Literal["sdpa", "eager"]


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


def render_mask(visible_RTT: Tensor, backend: AttentionBackend, dtype: torch.dtype) -> Tensor:
    """The 4-D mask that a transformers attention backend takes: [R, T, T] bool -> [R, 1, T, T].

    `sdpa` takes the booleans; `eager` adds its mask to the scores, so it gets 0 and the lowest number of `dtype`.
    """
    visible = visible_RTT[:, None]
    if backend == "sdpa":
        return visible
    lowest = torch.finfo(dtype).min
    return torch.zeros_like(visible, dtype=dtype).masked_fill(~visible, lowest)
