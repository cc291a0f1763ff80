"""Token log-probabilities in chunks, and their sums per sequence.

Suffixes: M trained tokens, H hidden size, V words.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

MOST_GRADIENTS = 2  # of the head at one time, each of its size: a chat, or a pair of answers


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

    Each chunk's logits are computed again in the backward pass. They are cast to fp32 before the log-sum-exp, so that
    log p has fp32's precision whatever the model computes in.

    Args:
        hidden_MH: [M, H] last hidden states at the positions that have a target.
        weight_VH: [V, H] weight of the head.
        targets_M: [M] token ids.
        chunk_size: Tokens per chunk, at least 1.
        correct: Say too whether the target has the largest logit: one more look at all logits.

    Raises:
        ValueError: If the shapes do not fit or `chunk_size` is below 1.
    """
    dtype = _check_head(hidden_MH, weight_VH, targets_M, chunk_size)
    return HeadOutput(*_ChunkedHead.apply(hidden_MH, weight_VH, targets_M, chunk_size, dtype, correct))


class SummedOutput(NamedTuple):
    """What the head says of M trained tokens if only sums of their log-probabilities are to be differentiated.

    Args:
        sums: [S] sum of each sequence's `logps`, fp32, with gradient.
        logps: [M] log p(target | prefix), fp32, no gradient.
        correct: [M] bool, True where the target has the largest logit; None if it was not asked for.
    """

    sums: Tensor
    logps: Tensor
    correct: Tensor | None


def summed_logps(
    hidden_MH: Tensor,
    weight_VH: Tensor,
    targets_M: Tensor,
    lengths: Sequence[int],
    chunk_size: int,
    correct: bool = False,
) -> SummedOutput:
    """Sums of `token_logps` over sequences: of few, with one matrix product less.

    In a sum each token's share is 1, so a chunk's gradients are known while its logits exist, but for one factor per
    sequence. That takes a gradient of the head for each, so it is done for at most MOST_GRADIENTS. For more, and in
    fp16, which needs the shares for its range, the logits are made again when the shares are known, as in
    `token_logps`.

    Args:
        hidden_MH: [M, H] last hidden states at the positions that have a target.
        weight_VH: [V, H] weight of the head.
        targets_M: [M] token ids.
        lengths: Trained tokens of each of the S sequences, which stand one after the other; M in all.
        chunk_size: Tokens per chunk, at least 1.
        correct: Say too whether the target has the largest logit.

    Raises:
        ValueError: If the shapes do not fit or `chunk_size` is below 1.
    """
    dtype = _check_head(hidden_MH, weight_VH, targets_M, chunk_size)
    if sum(lengths) != len(targets_M):
        raise ValueError(f"`lengths` must have as many tokens as `targets`, {len(targets_M)}, got {sum(lengths)}")
    if 1 <= len(lengths) <= MOST_GRADIENTS and dtype != torch.float16:
        return SummedOutput(
            *_SummedHead.apply(hidden_MH, weight_VH, targets_M, tuple(lengths), chunk_size, dtype, correct)
        )
    logps_M, hits_M = token_logps(hidden_MH, weight_VH, targets_M, chunk_size, correct)
    sequence_M = torch.tensor(
        [number for number, length in enumerate(lengths) for _ in range(length)], dtype=torch.long
    )
    sequence_M = sequence_M.to(logps_M.device, non_blocking=True)
    return SummedOutput(sum_per_sequence(logps_M, sequence_M, len(lengths)), logps_M.detach(), hits_M)


def _check_head(hidden_MH: Tensor, weight_VH: Tensor, targets_M: Tensor, chunk_size: int) -> torch.dtype:
    """The dtype that the head computes in, if its inputs fit."""
    if hidden_MH.shape != (targets_M.numel(), weight_VH.shape[1]):
        expected = (targets_M.numel(), weight_VH.shape[1])
        raise ValueError(f"`hidden` must be {expected} to fit targets and weight, got {tuple(hidden_MH.shape)}")
    if chunk_size < 1:
        raise ValueError(f"`chunk_size` must be at least 1, got {chunk_size}")
    device = hidden_MH.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight_VH.dtype


class _ChunkedHead(torch.autograd.Function):
    """log softmax(h W^T)[target], with dlogit = g (onehot - softmax) made anew, chunk by chunk, in the backward pass.

    As plain autograd over checkpointed chunks, in fewer passes over the logits: these are what costs beside the
    products. The gradient of the weight is summed over the chunks in one fp32 buffer.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk_size: int, dtype: torch.dtype, correct: bool
    ) -> tuple[Tensor, Tensor | None]:
        ctx.save_for_backward(hidden, weight, targets)
        ctx.chunk_size, ctx.dtype = chunk_size, dtype
        logps: list[Tensor] = []
        hits: list[Tensor] = []
        with torch.autocast(hidden.device.type, enabled=False):
            weight = weight.to(dtype)
            for part, target in _pieces(chunk_size, hidden, targets):
                logps_CV = F.log_softmax((part.to(dtype) @ weight.T).float(), dim=1)
                _keep_targets(logps_CV, target, logps, hits if correct else None)
                del logps_CV  # before the next piece's logits are made
        return torch.cat(logps), torch.cat(hits) if correct else None

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        hidden, weight, targets = ctx.saved_tensors
        dtype = ctx.dtype
        grad_hidden = torch.empty_like(hidden)
        grad_weight = _zero_gradient(weight)
        with torch.autocast(hidden.device.type, enabled=False):
            cast_weight = weight.to(dtype)
            for part, target, g, out in _pieces(ctx.chunk_size, hidden, targets, grad, grad_hidden):
                part = part.to(dtype)
                grad_logits = torch.softmax((part @ cast_weight.T).float(), dim=1)
                grad_logits.mul_(-g[:, None]).scatter_add_(1, target[:, None], g[:, None])
                _backpropagate(grad_logits.to(dtype), part, cast_weight, out, grad_weight)
                del grad_logits
        return grad_hidden, grad_weight.to(weight.dtype), None, None, None, None


class _SummedHead(torch.autograd.Function):
    """Sums of log softmax(h W^T)[target] per sequence, with dh and dW for factors of 1: dlogit = onehot - softmax.

    dW is kept for each sequence, in fp32, until the factors of the sums are known.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        lengths: tuple[int, ...],
        chunk_size: int,
        dtype: torch.dtype,
        correct: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        grad_hidden, grad_weights = torch.empty_like(hidden), []
        logps: list[Tensor] = []
        hits: list[Tensor] = []
        sequences = zip(*(tensor.split(lengths) for tensor in (hidden, targets, grad_hidden)), strict=True)
        with torch.autocast(hidden.device.type, enabled=False):
            cast_weight = weight.to(dtype)
            for sequence in sequences:
                if any(ctx.needs_input_grad):
                    grad_weights.append(_zero_gradient(weight))
                for part, target, out in _pieces(chunk_size, *sequence):
                    part = part.to(dtype)
                    logps_CV = F.log_softmax((part @ cast_weight.T).float(), dim=1)
                    _keep_targets(logps_CV, target, logps, hits if correct else None)
                    if grad_weights:
                        one = torch.ones_like(logps_CV[:, :1])
                        logps_CV.exp_().neg_().scatter_add_(1, target[:, None], one)
                        _backpropagate(logps_CV.to(dtype), part, cast_weight, out, grad_weights[-1])
                    del logps_CV
        ctx.lengths, ctx.weight_dtype = lengths, weight.dtype
        if grad_weights:
            ctx.save_for_backward(grad_hidden, *grad_weights)
        found = torch.cat(logps), torch.cat(hits) if correct else None
        ctx.mark_non_differentiable(*(tensor for tensor in found if tensor is not None))
        return torch.stack([sequence.sum() for sequence in found[0].split(lengths)]), *found

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        # In place: one buffer more, as large as the head, would be the peak of memory. autograd refuses a second pass.
        grad_hidden, grad_weight, *others = ctx.saved_tensors
        for part, factor in zip(grad_hidden.split(ctx.lengths), grad, strict=True):
            part.mul_(factor)
        grad_weight.mul_(grad[0])
        for other, factor in zip(others, grad[1:], strict=True):
            grad_weight.addcmul_(other, factor)
        return grad_hidden, grad_weight.to(ctx.weight_dtype), None, None, None, None, None


def _zero_gradient(weight: Tensor) -> Tensor:
    """A buffer for the weight's gradient, at least in fp32: it is a sum over pieces."""
    return torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))


def _pieces(chunk_size: int, *tensors: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """The tensors in as few pieces of at most `chunk_size` tokens as can be, of equal size: small products are slow.

    Zero tokens give one empty piece: an empty batch keeps its graph, with gradients of zero.
    """
    count = max(1, math.ceil(len(tensors[0]) / chunk_size))
    return zip(*(tensor.tensor_split(count) for tensor in tensors), strict=True)


def _keep_targets(logps_CV: Tensor, target: Tensor, logps: list[Tensor], hits: list[Tensor] | None) -> None:
    """Of a piece, keep log p of its targets, and whether they have the largest logit if that is asked for."""
    logps.append(logps_CV.gather(1, target[:, None])[:, 0])
    if hits is not None:
        hits.append(logps[-1] >= logps_CV.amax(dim=1))


def _backpropagate(grad_logits: Tensor, part: Tensor, weight: Tensor, grad_part: Tensor, grad_weight: Tensor) -> None:
    """From the gradient of a piece's logits to that of its hidden states; add what it gives to that of the weight."""
    grad_part.copy_(grad_logits @ weight)
    if grad_weight.dtype == grad_logits.dtype:
        grad_weight.addmm_(grad_logits.T, part)
    else:
        grad_weight += grad_logits.T @ part


def sum_per_sequence(values_M: Tensor, sequence_M: Tensor, num_sequences: int) -> Tensor:
    """Sum of the trained tokens' values in each sequence: [M], [M] -> [num_sequences].

    With log p(token | prefix) this is log p(answer | prompt), the score of eq. 7 of https://arxiv.org/abs/2305.18290.
    """
    if values_M.shape != sequence_M.shape:
        raise ValueError(f"`sequence` must be {tuple(values_M.shape)} to match `values`, got {tuple(sequence_M.shape)}")
    return values_M.new_zeros(num_sequences).index_add(0, sequence_M, values_M)
