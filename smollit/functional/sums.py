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


def sum_over_common_length(values_M: Tensor, sequence_M: Tensor, pairs_P2: Tensor, num_sequences: int) -> Tensor:
    """Sums over the first L tokens of both sequences of each pair, [P, 2], where L is the length of the shorter one.

    Args:
        values_M: [M] values of the loss tokens, sequence by sequence.
        sequence_M: [M] index of the sequence of each token.
        pairs_P2: [P, 2] indices of the sequences that are compared.
        num_sequences: Number of all sequences.
    """
    lengths = sum_per_sequence(torch.ones_like(sequence_M), sequence_M, num_sequences)
    index_M = torch.arange(len(values_M), device=values_M.device) - (lengths.cumsum(0) - lengths)[sequence_M]
    common_P = lengths[pairs_P2].amin(dim=1)
    counts_P2M = (sequence_M == pairs_P2[:, :, None]) & (index_M < common_P[:, None, None])
    return (counts_P2M * values_M).sum(dim=2)


def sequence_index(lengths: Sequence[int], device: torch.device) -> Tensor:
    """Index of the sequence of each token, [M]: lengths 2 and 3 give 0 0 1 1 1. No device synchronization."""
    counts = torch.tensor(lengths, dtype=torch.long).to(device, non_blocking=True)
    return torch.repeat_interleave(counts, output_size=sum(lengths))
