"""NEFTune: noise on the embeddings of chats, in training."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from smollit.models.sharding import unwrap
from smollit.modules import SFTModule


class NEFTune(Callback):
    """Adds noise to the embeddings in training: NEFTune, https://arxiv.org/abs/2310.05914.

    Each number of an embedding gets alpha / sqrt(L d) x u, where L is the number of tokens of the chat, d the hidden
    size, and u is drawn from -1 to 1. Validation and generation have no noise. The noise comes from the random state
    that checkpoints hold: a resumed run equals one that never stopped.

    Args:
        alpha: Size of the noise, above 0; the paper uses 5, 10 and 15.
    """

    def __init__(self, alpha: float = 5.0) -> None:
        if not 0 < alpha < float("inf"):
            raise ValueError(f"NEFTune needs an `alpha` above 0, got {alpha}")
        self.alpha = alpha
        self.starts: Tensor | None = None  # of the micro-batch: where a chat starts, [R, T]; None for a chat per row

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a module that does not train on chats."""
        if not isinstance(pl_module, SFTModule):
            raise ValueError("NEFTune needs an SFTModule: the noise would count as reward in DPO")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the noise after the embedding layer, whose output no layer has recomputed."""
        assert isinstance(pl_module, SFTModule)
        model = unwrap(pl_module.policy).model
        self.handles = [
            model.base_model.register_forward_pre_hook(self._note_starts, with_kwargs=True),
            model.get_input_embeddings().register_forward_hook(self._add_noise),
        ]

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove it."""
        for handle in self.handles:
            handle.remove()

    def _note_starts(self, model: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        position_ids = options.get("position_ids")
        self.starts = None if position_ids is None else position_ids == 0

    def _add_noise(self, layer: nn.Module, args: tuple[Any, ...], embeddings: Tensor) -> Tensor:
        if not layer.training:
            return embeddings
        noise = torch.empty_like(embeddings).uniform_(-1, 1)
        lengths = chat_lengths(self.starts) if self.starts is not None else embeddings.shape[1]
        size = self.alpha / (lengths * embeddings.shape[-1]) ** 0.5
        return embeddings + noise * (size[..., None].to(noise) if isinstance(size, Tensor) else size)


def chat_lengths(starts: Tensor) -> Tensor:
    """Number of tokens of the chat of each position, [R, T], from where chats start; without a wait for the device."""
    chat = starts.flatten().long().cumsum(0)
    counts = torch.zeros(len(chat) + 1, dtype=torch.long, device=chat.device)
    return counts.index_add(0, chat, torch.ones_like(chat))[chat].view_as(starts)
