"""Token log-probabilities in chunks, and their sums per sequence.

Suffixes: M trained tokens, H hidden size, V words.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


class HeadOutput(NamedTuple):
    """What the language-model head says of M trained tokens, without the [M, V] logits.

    Args:
        logps: [M] log p(target | prefix), fp32, with gradient.
        correct: [M] bool, True where the target has the largest logit; None if it was not asked for.
    """

    logps: Tensor
    correct: Tensor | None


def token_logps(
    hidden_MH: Tensor, weight_VH: Tensor, targets_M: Tensor, chunk_size: int, correct: bool = False
) -> HeadOutput:
    """Log-probabilities of the targets, `chunk_size` tokens at a time: memory does not grow with M x V.

    Each chunk is recomputed in the backward pass. Logits are cast to fp32 before the log-sum-exp, so that log p has
    fp32's precision whatever the model computes in.

    Args:
        hidden_MH: [M, H] last hidden states at the positions that have a target.
        weight_VH: [V, H] weight of the head.
        targets_M: [M] token ids.
        chunk_size: Tokens per chunk, at least 1.
        correct: Say too whether the target has the largest logit: one more look at all logits.

    Raises:
        ValueError: If the shapes do not fit or `chunk_size` is below 1.
    """
    if hidden_MH.shape != (targets_M.numel(), weight_VH.shape[1]):
        expected = (targets_M.numel(), weight_VH.shape[1])
        raise ValueError(f"`hidden` must be {expected} to fit targets and weight, got {tuple(hidden_MH.shape)}")
    if chunk_size < 1:
        raise ValueError(f"`chunk_size` must be at least 1, got {chunk_size}")
    # split() of zero tokens gives one empty chunk: an empty batch keeps its graph, with gradients of zero.
    chunks = [
        _chunk_logps(hidden, weight_VH, targets, correct)
        for hidden, targets in zip(hidden_MH.split(chunk_size), targets_M.split(chunk_size), strict=True)
    ]
    hits = torch.cat([chunk.correct for chunk in chunks if chunk.correct is not None]) if correct else None
    return HeadOutput(torch.cat([chunk.logps for chunk in chunks]), hits)


def _chunk_logps(hidden: Tensor, weight: Tensor, targets: Tensor, correct: bool) -> HeadOutput:
    if torch.is_grad_enabled():
        return HeadOutput(*checkpoint(_score_chunk, hidden, weight, targets, correct, use_reentrant=False))
    return HeadOutput(*_score_chunk(hidden, weight, targets, correct))


def _score_chunk(hidden: Tensor, weight: Tensor, targets: Tensor, correct: bool) -> tuple[Tensor, Tensor | None]:
    logits = (hidden @ weight.T).float()
    target_logits = logits.gather(1, targets[:, None])[:, 0]
    hits = target_logits.detach() >= logits.detach().amax(dim=1) if correct else None
    return target_logits - logits.logsumexp(dim=1), hits


def sum_per_sequence(values_M: Tensor, sequence_M: Tensor, num_sequences: int) -> Tensor:
    """Sum of the trained tokens' values in each sequence: [M], [M] -> [num_sequences].

    With log p(token | prefix) this is log p(answer | prompt), the score of eq. 7 of https://arxiv.org/abs/2305.18290.
    """
    if values_M.shape != sequence_M.shape:
        raise ValueError(f"`sequence` must be {tuple(values_M.shape)} to match `values`, got {tuple(sequence_M.shape)}")
    return values_M.new_zeros(num_sequences).index_add(0, sequence_M, values_M)
