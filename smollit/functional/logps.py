"""Log-probabilities of labels under the language-model head, in chunks of tokens, and their sums per sequence.

Shape suffixes: M loss tokens, C tokens of a chunk, H hidden size, V vocabulary, S sequences whose tokens are summed.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from smollit.functional.autocast import product_dtype
from smollit.functional.chunks import Found, backpropagate, chunks, over_vocabulary, weight_gradient
from smollit.functional.sums import sequence_index, sum_per_sequence

MAX_WEIGHT_GRADIENTS = 2  # buffers of the head's size that are held at one time: for one chat, or one pair


class HeadOutput(NamedTuple):
    """log p(label | prefix), [M], fp32; if requested, also whether the label has the largest logit, and the entropy."""

    logps: Tensor
    correct: Tensor | None
    entropies: Tensor | None


class SummedOutput(NamedTuple):
    """HeadOutput with the sums of `logps` over each sequence, [S], which have the gradient; `logps` has none."""

    sums: Tensor
    logps: Tensor
    correct: Tensor | None
    entropies: Tensor | None


class _Options(NamedTuple):
    """Tokens per chunk, dtype of the products, softcap, what is requested, and the lengths to sum over."""

    chunk_size: int
    dtype: torch.dtype
    softcap: float | None
    correct: bool
    entropy: bool
    lengths: tuple[int, ...] = ()


def token_logps(
    hidden_MH: Tensor,
    weight_VH: Tensor,
    labels_M: Tensor,
    *,
    chunk_size: int,
    correct: bool = False,
    entropy: bool = False,
    softcap: float | None = None,
) -> HeadOutput:
    """log softmax(h W^T)[label] of each token, one chunk at a time: memory does not grow with M x V.

    The backward pass computes each chunk's logits again. Logits are cast to fp32 before the log-sum-exp, so that log p
    has the precision of fp32 for every dtype of the model.

    Args:
        hidden_MH: [M, H] last hidden states at the positions that have a label.
        weight_VH: [V, H] weight of the head.
        labels_M: [M] token ids.
        chunk_size: Tokens per chunk, at least 1: bounds peak logits memory.
        correct: Also compute where the label has the largest logit, at the cost of one more pass over the logits.
        entropy: Also compute -sum_v p_v log p_v, in nats, at the cost of two more passes over the logits.
        softcap: The logits become softcap * tanh(logits / softcap); None leaves them.

    Raises:
        ValueError: If the shapes do not match or `chunk_size` is below 1.
    """
    dtype = _checked_dtype(hidden_MH, weight_VH, labels_M, chunk_size)
    options = _Options(chunk_size, dtype, softcap, correct, entropy)
    return HeadOutput(*_ChunkedHead.apply(hidden_MH, weight_VH, labels_M, options))


def summed_logps(
    hidden_MH: Tensor,
    weight_VH: Tensor,
    labels_M: Tensor,
    *,
    lengths: Sequence[int],
    chunk_size: int,
    correct: bool = False,
    entropy: bool = False,
    softcap: float | None = None,
) -> SummedOutput:
    """Sums of `token_logps` over sequences; for one or two sequences, the logits are computed only once.

    In a sum, the gradient of each token has the factor 1. So the gradients of a chunk are known while its logits exist,
    except for one factor per sequence. This takes one gradient buffer of the head's size per sequence, so it is done
    for at most MAX_WEIGHT_GRADIENTS of them. For more sequences, and in fp16, whose range needs the factors first, the
    logits are computed again in the backward pass, as in `token_logps`.

    Args:
        hidden_MH, weight_VH, labels_M, chunk_size, correct, entropy, softcap: As for `token_logps`, same errors.
        lengths: Loss tokens of each of the S sequences, which follow one another; M in all.
    """
    dtype = _checked_dtype(hidden_MH, weight_VH, labels_M, chunk_size)
    options = _Options(chunk_size, dtype, softcap, correct, entropy)
    if sum(lengths) != len(labels_M):
        raise ValueError(f"`lengths` must sum to the number of labels, {len(labels_M)}, got {sum(lengths)}")
    # The same way whether or not the head is frozen: a policy that equals its reference has its values to the bit.
    if 1 <= len(lengths) <= MAX_WEIGHT_GRADIENTS and options.dtype != torch.float16:
        return SummedOutput(
            *_SummedHead.apply(hidden_MH, weight_VH, labels_M, options._replace(lengths=tuple(lengths)))
        )
    logps_M, correct_M, entropy_M = _ChunkedHead.apply(hidden_MH, weight_VH, labels_M, options)
    sums_S = sum_per_sequence(logps_M, sequence_index(lengths, logps_M.device), len(lengths))
    return SummedOutput(sums_S, logps_M.detach(), correct_M, entropy_M)


def _checked_dtype(hidden_MH: Tensor, weight_VH: Tensor, labels_M: Tensor, chunk_size: int) -> torch.dtype:
    """Verify the shapes; the dtype of the products is that of autocast, or of the weight."""
    expected = (labels_M.numel(), weight_VH.shape[1])
    if hidden_MH.shape != expected:
        raise ValueError(f"`hidden` must be {expected} to match labels and weight, got {tuple(hidden_MH.shape)}")
    if chunk_size < 1:
        raise ValueError(f"`chunk_size` must be at least 1, got {chunk_size}")
    return product_dtype(weight_VH)


class _ChunkedHead(torch.autograd.Function):
    """log softmax(h W^T)[label], with dlogit = g (onehot - softmax) computed again per chunk in the backward pass.

    Like autograd over checkpointed chunks, in fewer passes over the logits, which are slow compared with the products.
    The gradient of the weight is summed over the chunks in one fp32 buffer.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, options: _Options
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        ctx.save_for_backward(hidden, weight, labels)
        ctx.options = options
        found = Found(correct=options.correct, entropy=options.entropy)
        with torch.autocast(hidden.device.type, enabled=False):
            weight = weight.to(options.dtype)
            for part, label in chunks(options.chunk_size, hidden, labels):
                logps_CV, _ = over_vocabulary(F.log_softmax, part.to(options.dtype), weight, options.softcap)
                found.add(logps_CV, label)
                del logps_CV  # before the next chunk's logits are computed
        logps, correct, entropies = found.joined()
        if entropies is not None:
            ctx.mark_non_differentiable(entropies)
        return logps, correct, entropies

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        hidden, weight, labels = ctx.saved_tensors
        chunk_size, dtype, softcap = ctx.options[:3]
        grad_hidden = torch.empty_like(hidden)
        grad_weight = weight_gradient(weight) if ctx.needs_input_grad[1] else None
        with torch.autocast(hidden.device.type, enabled=False):
            cast_weight = weight.to(dtype)
            for part, label, g, out in chunks(chunk_size, hidden, labels, grad, grad_hidden):
                part = part.to(dtype)
                grad_logits, slope_CV = over_vocabulary(torch.softmax, part, cast_weight, softcap)
                grad_logits.mul_(-g[:, None]).scatter_add_(1, label[:, None], g[:, None])
                if slope_CV is not None:
                    grad_logits.mul_(slope_CV)
                backpropagate(grad_logits.to(dtype), part, cast_weight, grad_part=out, grad_weight=grad_weight)
                del grad_logits
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype), None, None


class _SummedHead(torch.autograd.Function):
    """Sums of log softmax(h W^T)[label] per sequence, with dh and dW for factors of 1: dlogit = onehot - softmax.

    dW is kept for each sequence, in fp32, until the factors of the sums are known.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, options: _Options
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        chunk_size, dtype, softcap, *_, lengths = options
        grad_hidden, grad_weights = torch.empty_like(hidden), list[Tensor]()
        has_gradient, trains_weight = any(ctx.needs_input_grad), ctx.needs_input_grad[1]
        found = Found(correct=options.correct, entropy=options.entropy)
        sequences = zip(*(tensor.split(lengths) for tensor in (hidden, labels, grad_hidden)), strict=True)
        with torch.autocast(hidden.device.type, enabled=False):
            cast_weight = weight.to(dtype)
            for sequence in sequences:
                if trains_weight:
                    grad_weights.append(weight_gradient(weight))
                for part, label, out in chunks(chunk_size, *sequence):
                    part = part.to(dtype)
                    logps_CV, slope_CV = over_vocabulary(F.log_softmax, part, cast_weight, softcap)
                    found.add(logps_CV, label)
                    if has_gradient:
                        one = torch.ones_like(logps_CV[:, :1])
                        grad_logits = logps_CV.exp_().neg_().scatter_add_(1, label[:, None], one)
                        if slope_CV is not None:
                            grad_logits.mul_(slope_CV)
                        grad_logits = grad_logits.to(dtype)
                        total = grad_weights[-1] if trains_weight else None
                        backpropagate(grad_logits, part, cast_weight, grad_part=out, grad_weight=total)
                        del grad_logits
                    del logps_CV
        ctx.lengths, ctx.weight_dtype = lengths, weight.dtype
        if has_gradient:
            ctx.save_for_backward(grad_hidden, *grad_weights)
        per_token = found.joined()
        ctx.mark_non_differentiable(*(tensor for tensor in per_token if tensor is not None))
        return torch.stack([sequence.sum() for sequence in per_token[0].split(lengths)]), *per_token

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        # In place: one more buffer as large as the head would be the peak memory. autograd refuses a second pass.
        grad_hidden, *grad_weights = ctx.saved_tensors
        for part, factor in zip(grad_hidden.split(ctx.lengths), grad, strict=True):
            part.mul_(factor)
        if not grad_weights:
            return grad_hidden, None, None, None
        grad_weight, *others = grad_weights
        grad_weight.mul_(grad[0])
        for other, factor in zip(others, grad[1:], strict=True):
            grad_weight.addcmul_(other, factor)
        return grad_hidden, grad_weight.to(ctx.weight_dtype), None, None
