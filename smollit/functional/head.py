"""The language-model head: hidden states -> logits, as the model defines them. M tokens, H hidden size, V words."""

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
            return hidden_MH.float() @ weight_VH.mean(dim=0, dtype=torch.float32)
        chunks = hidden_MH.to(weight_VH.dtype).split(chunk_size)
        capped = LogitScaling(softcap=self.scaling.softcap)  # the scale is in `hidden_MH`
        return torch.cat([capped.apply((chunk @ weight_VH.T).float()).mean(dim=1) for chunk in chunks])
