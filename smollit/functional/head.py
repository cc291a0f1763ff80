"""The language-model head: hidden states -> logits, as the model defines them. M tokens, H hidden size, V words."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class LogitScaling(NamedTuple):
    """What a model does to the output of its head: logits = softcap * tanh(scale * output / softcap).

    Args:
        scale: Factor of the output (Granite, Cohere).
        softcap: Bound of the logits (Gemma 2); None leaves them as they are.
    """

    scale: float = 1.0
    softcap: float | None = None

    def apply(self, output: Tensor) -> Tensor:
        """The logits."""
        scaled = output * self.scale
        return scaled if self.softcap is None else self.softcap * torch.tanh(scaled / self.softcap)


class Head(NamedTuple):
    """A linear head and what the model does to its output.

    Args:
        weight_VH: [V, H] weight.
        bias_V: [V] bias (Phi-2); None for most models.
        scaling: What the model does to the output.
    """

    weight_VH: Tensor
    bias_V: Tensor | None = None
    scaling: LogitScaling = LogitScaling()

    def folded(self, hidden_MH: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states and a weight whose product is scale * (h W^T + b): a bias is the weight of one more state."""
        if self.scaling.scale != 1.0:
            hidden_MH = hidden_MH * self.scaling.scale
        if self.bias_V is None:
            return hidden_MH, self.weight_VH
        ones = torch.full_like(hidden_MH[:, :1], self.scaling.scale)
        return torch.cat([hidden_MH, ones], dim=1), torch.cat([self.weight_VH, self.bias_V[:, None]], dim=1)

    @torch.no_grad()
    def mean_logits(self, hidden_MH: Tensor, *, chunk_size: int) -> Tensor:
        """Mean of each token's logits over the vocabulary, [M]: mean_v(h . W_v) = h . mean_v(W_v), without the logits.

        Logits with a softcap have no such form, and are computed once more in chunks.
        """
        hidden_MH, weight_VH = self.folded(hidden_MH)
        if self.scaling.softcap is None:
            return (hidden_MH.float() * weight_VH.mean(dim=0, dtype=torch.float32)).sum(dim=1)  # autocast: not `@`
        return torch.cat([logits_CV.mean(dim=1) for logits_CV in self._chunks(hidden_MH, weight_VH, chunk_size)])

    @torch.no_grad()
    def log_sum_squares(self, hidden_MH: Tensor, *, chunk_size: int) -> Tensor:
        """log sum_v p_v^2 of each token, [M]: the log of the mean probability of a token that is drawn from p."""
        chunks = self._chunks(*self.folded(hidden_MH), chunk_size)
        return torch.cat([(2 * logits_CV.log_softmax(dim=1)).logsumexp(dim=1) for logits_CV in chunks])

    def excess_logits(self, hidden_MH: Tensor, labels_M: Tensor) -> Tensor:
        """Logit of each label minus the mean over the vocabulary, [M], with gradient: h . (W_label - mean_v(W_v)).

        Raises:
            ValueError: If the model has a softcap, with which the mean has no such form.
        """
        if self.scaling.softcap is not None:
            raise ValueError("`model.loss.label_smoothing` is not available for models with a softcap of their logits")
        hidden_MH, weight_VH = self.folded(hidden_MH)
        excess_MH = weight_VH[labels_M].float() - weight_VH.mean(dim=0, dtype=torch.float32)
        return (hidden_MH.float() * excess_MH).sum(dim=1)

    def _chunks(self, hidden_MH: Tensor, weight_VH: Tensor, chunk_size: int) -> Iterator[Tensor]:
        """The logits, in fp32, of chunks of tokens: [C, V] each. The scale is in `hidden_MH`."""
        capped = LogitScaling(softcap=self.scaling.softcap)
        for part_CH in hidden_MH.to(weight_VH.dtype).split(chunk_size):
            yield capped.apply((part_CH @ weight_VH.T).float())
