"""Sums over the tokens of each sequence. M loss tokens, S sequences."""

from collections.abc import Sequence

import torch
from torch import Tensor


def sum_per_sequence(values_M: Tensor, sequence_M: Tensor, num_sequences: int) -> Tensor:
    """Sum of the loss tokens' values in each sequence: [M], [M] -> [num_sequences].

    With log p(token | prefix) this is log p(response | prompt), the score of eq. 7 of https://arxiv.org/abs/2305.18290.
    """
    if values_M.shape != sequence_M.shape:
        raise ValueError(f"`sequence` must be {tuple(values_M.shape)} to match `values`, got {tuple(sequence_M.shape)}")
    return values_M.new_zeros(num_sequences).index_add(0, sequence_M, values_M)


def sequence_index(lengths: Sequence[int], device: torch.device) -> Tensor:
    """Index of the sequence of each token, [M]: lengths 2 and 3 give 0 0 1 1 1. No device synchronization."""
    counts = torch.tensor(lengths, dtype=torch.long).to(device, non_blocking=True)
    return torch.repeat_interleave(counts, output_size=sum(lengths))
