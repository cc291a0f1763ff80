"""CausalLM: a transformers model that scores targets. forward(batch) -> TokenScores, never [R, T, V] logits."""

import hashlib
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from smollit.batch import IGNORE, PADDING, Batch
from smollit.functional.attention import AttentionBackend, render_mask, visibility
from smollit.functional.logps import token_logps
from smollit.models.pretrained import load_model


class TokenScores(NamedTuple):
    """What the model says of the M positions that have a target, in row order.

    Args:
        logps: [M] log p(target | prefix), fp32, with gradient.
        correct: [M] bool, the target has the largest logit.
        mean_logits: [M] mean over the vocabulary of the logits, no gradient.
        document: [M] example of the batch.
        branch: [M] 0 shared, 1 chosen, 2 rejected.
    """

    logps: Tensor
    correct: Tensor
    mean_logits: Tensor
    document: Tensor
    branch: Tensor


class CausalLM(nn.Module):
    """A Llama-like causal language model that scores targets in chunks.

    Args:
        model_name: Hub id or local folder, in Hugging Face format.
        weights: `pretrained` loads the weights; `random` takes only the configuration and starts from scratch.
        dtype: dtype of the weights. Keep fp32 unless the trainer's precision ends in `-true`.
        attention: transformers' attention backend.
        chunk_size: Tokens whose logits exist at the same time.
        gradient_checkpointing: Recompute each layer in the backward pass: less memory, about a third more time.
        dropout: Attention dropout; null keeps the model's own.
    """

    def __init__(
        self,
        model_name: str,
        weights: Literal["pretrained", "random"] = "pretrained",
        dtype: torch.dtype = torch.float32,
        attention: AttentionBackend = "sdpa",
        chunk_size: int = 1024,
        gradient_checkpointing: bool = False,
        dropout: float | None = None,
    ) -> None:
        super().__init__()
        self.attention = attention
        self.chunk_size = chunk_size
        self.model: PreTrainedModel = load_model(model_name, weights, dtype, attention, dropout)
        if gradient_checkpointing:
            # transformers 5.24 has a new name for it. The re-entrant variant needs inputs that require gradients, and
            # breaks DDP.
            old_name = self.model.gradient_checkpointing_enable
            getattr(self.model, "activation_checkpointing_enable", old_name)({"use_reentrant": False})

    @property
    def config(self) -> PretrainedConfig:
        """The transformers configuration."""
        return self.model.config

    def forward(self, batch: Batch) -> TokenScores:
        """Score every position that has a target.

        Raises:
            ValueError: If a row is longer than the model's positions.
        """
        hidden_RTH = self.hidden_states(batch)
        trained_RT = batch.targets != IGNORE
        hidden_MH = hidden_RTH[trained_RT]
        weight_VH = self.model.get_output_embeddings().weight
        logps, correct = token_logps(hidden_MH, weight_VH, batch.targets[trained_RT], self.chunk_size)
        with torch.no_grad():
            # mean_v(h . W_v) = h . mean_v(W_v): the mean logit without the logits.
            mean_logits = hidden_MH.float() @ weight_VH.mean(dim=0, dtype=torch.float32)
        return TokenScores(logps, correct, mean_logits, batch.document[trained_RT], batch.branch[trained_RT])

    def hidden_states(self, batch: Batch) -> Tensor:
        """Last hidden states, [R, T, H]; documents and branches see only what `functional.attention` lets them."""
        self._check_length(batch)
        if batch.causal:
            # Plain causal attention: padding is on the right, where no token looks. Position ids that start again at
            # the padding would make transformers build a mask, and leave its fast kernels.
            mask, position_ids = None, None
        else:
            visible = visibility(batch.document, batch.branch)
            mask, position_ids = render_mask(visible, self.attention, self.model.dtype), batch.position_ids
        # A cache would make transformers forget the position ids' borders, and costs memory.
        output = self.model.base_model(
            input_ids=batch.input_ids, position_ids=position_ids, attention_mask=mask, use_cache=False
        )
        return output.last_hidden_state

    def _check_length(self, batch: Batch) -> None:
        length, limit = batch.input_ids.shape[1], self.config.max_position_embeddings
        if batch.causal and length > limit:
            raise ValueError(f"a row has {length} tokens, but the model has {limit} positions: lower `data.max_length`")
        window = getattr(self.config, "sliding_window", None)
        if not batch.causal and window is not None and length > window:
            raise ValueError(
                f"a row has {length} tokens, and the model's attention reaches back {window}, which smollit's masks do"
                " not have yet: lower `data.max_length` so that a row fits into the window"
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "CausalLM":
        # Lightning casts the whole module for bf16-true. Rotary frequencies in bf16 are off by up to 0.2 %: radians,
        # a thousand positions on. So buffers move, but keep their dtype.
        kept = [(module, dict(module._buffers)) for module in self.modules()]
        super()._apply(fn, recurse)
        for module, buffers in kept:
            for name, before in buffers.items():
                after = module._buffers[name]
                if before is not None and after is not None and after.dtype != before.dtype:
                    module._buffers[name] = before.to(after.device)
        return self

    @torch.no_grad()
    def generate(
        self, batch: Batch, max_new_tokens: int, stop_ids: list[int], temperature: float = 0.0
    ) -> list[list[int]]:
        """Continue each row's prompt; returns the new token ids per row, without the stop token.

        Args:
            batch: Rows of one document each, without branches.
            max_new_tokens: Longest answer.
            stop_ids: Tokens that end an answer.
            temperature: 0 takes the likeliest token each time; above 0 draws from the softmax at this temperature.
        """
        rows = [ids[document != PADDING] for ids, document in zip(batch.input_ids, batch.document, strict=True)]
        longest = max(len(row) for row in rows)
        # Left padding, with a mask: every row's next token is then the last position.
        pad = stop_ids[0] if stop_ids else 0
        input_ids = torch.stack([nn.functional.pad(row, (longest - len(row), 0), value=pad) for row in rows])
        mask = torch.stack([nn.functional.pad(torch.ones_like(row), (longest - len(row), 0)) for row in rows])
        # top_k 0: transformers would draw from the 50 likeliest only.
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
        output: Tensor = self.model.generate(  # type: ignore[operator]
            input_ids,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            eos_token_id=stop_ids or None,
            pad_token_id=pad,
            use_cache=True,
            **sampling,
        )
        return [_until_stop(row[longest:].tolist(), stop_ids) for row in output]

    def fingerprint(self) -> str:
        """SHA-256 of all weights: two models with the same fingerprint compute the same."""
        digest = hashlib.sha256()
        for name, parameter in sorted(self.model.named_parameters()):
            digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
            digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()


def _until_stop(token_ids: list[int], stop_ids: list[int]) -> list[int]:
    for position, token_id in enumerate(token_ids):
        if token_id in stop_ids:
            return token_ids[:position]
    return token_ids
