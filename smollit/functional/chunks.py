"""What both chunked heads do with a chunk of tokens. M loss tokens, C tokens of a chunk, V vocabulary."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def over_vocabulary(
    normalize: Callable[..., Tensor], part: Tensor, weight: Tensor, softcap: float | None
) -> tuple[Tensor, Tensor | None]:
    """softmax or log_softmax of a chunk's logits, in fp32, and the derivative of the softcap, 1 - tanh^2.

    The logits themselves are freed here: with them, a chunk would take twice the memory.
    """
    logits_CV = (part @ weight.T).float()
    if softcap is None:
        return normalize(logits_CV, dim=1), None
    tanh_CV = logits_CV.div_(softcap).tanh_()
    return normalize(softcap * tanh_CV, dim=1), tanh_CV.square_().neg_().add_(1)


class Found:
    """What the head says about each token, chunk by chunk: log p of the label, and what else is requested.

    Args:
        correct: Also whether the label has the largest logit.
        entropy: Also the entropy of the distribution over the vocabulary.
    """

    def __init__(self, *, correct: bool, entropy: bool) -> None:
        self.logps: list[Tensor] = []
        self.correct: list[Tensor] | None = [] if correct else None
        self.entropies: list[Tensor] | None = [] if entropy else None

    def add(self, logps_CV: Tensor, label_C: Tensor) -> None:
        """Look the labels of a chunk up, and reduce the rest of what is requested over the vocabulary."""
        self.logps.append(logps_CV.gather(1, label_C[:, None])[:, 0])
        if self.correct is not None:
            self.correct.append(self.logps[-1] >= logps_CV.amax(dim=1))
        if self.entropies is not None:
            self.entropies.append(torch.special.entr(logps_CV.exp()).sum(dim=1))

    def joined(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """`logps`, `correct` and `entropies` of all chunks, [M] each."""
        correct, entropies = (None if parts is None else torch.cat(parts) for parts in (self.correct, self.entropies))
        return torch.cat(self.logps), correct, entropies


def weight_gradient(weight: Tensor) -> Tensor:
    """A buffer for the gradient of the weight, at least in fp32, because it is a sum over chunks."""
    return torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))


def chunks(chunk_size: int, *tensors: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """The tensors in as few chunks of at most `chunk_size` tokens as possible, of equal size: small products are slow.

    Zero tokens give one empty chunk: an empty batch keeps its graph, with gradients of zero.
    """
    count = max(1, math.ceil(len(tensors[0]) / chunk_size))
    return zip(*(tensor.tensor_split(count) for tensor in tensors), strict=True)


def backpropagate(
    grad_logits: Tensor, part: Tensor, weight: Tensor, *, grad_part: Tensor, grad_weight: Tensor | None
) -> None:
    """Write dh = dlogits W, and add dlogits^T h to dW, unless the weight is frozen."""
    grad_part.copy_(grad_logits @ weight)
    if grad_weight is None:
        return
    if grad_weight.dtype == grad_logits.dtype:
        grad_weight.addmm_(grad_logits.T, part)
    else:
        grad_weight += grad_logits.T @ part
