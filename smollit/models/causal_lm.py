"""CausalLM: a transformers model that scores targets. forward(batch) -> TokenScores, never [R, T, V] logits."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from smollit.batch import PADDING, Batch
from smollit.functional.attention import AttentionBackend
from smollit.functional.logps import summed_logps, token_logps
from smollit.models.attention import for_generation, render, transformers_name
from smollit.models.pretrained import load_model
from smollit.models.recompute import GradientCheckpointing, recompute_layers


class TokenScores(NamedTuple):
    """What the model says of the M positions that have a target, in row order.

    Args:
        logps: [M] log p(target | prefix), fp32, with gradient, unless only sums were asked for.
        correct: [M] bool, the target has the largest logit; None if it was not asked for.
        mean_logits: [M] mean over the vocabulary of the logits, no gradient; None if it was not asked for.
        document: [M] example of the batch.
        branch: [M] 0 shared, 1 chosen, 2 rejected.
        sums: [S] sums of `logps`, with gradient; None if they were not asked for.
    """

    logps: Tensor
    correct: Tensor | None
    mean_logits: Tensor | None
    document: Tensor
    branch: Tensor
    sums: Tensor | None = None

    @property
    def answer_logps(self) -> Tensor:
        """The sums of pairs' answers, chosen then rejected, [N, 2]."""
        assert self.sums is not None, "they are asked for with only_sums_of=batch.answer_lengths"
        return self.sums.view(-1, 2)


class CausalLM(nn.Module):
    """A Llama-like causal language model that scores targets in chunks.

    Args:
        model_name: Hub id or local folder, in Hugging Face format.
        weights: `pretrained` loads the weights; `random` takes only the configuration and starts from scratch.
        dtype: dtype of the weights. Keep fp32 unless the trainer's precision ends in `-true`.
        attention: How documents are kept apart: see `functional.attention`.
        chunk_size: Tokens whose logits exist at the same time.
        gradient_checkpointing: true recomputes each layer in the backward pass; `selective` keeps the results of
            matrix products and attention, and recomputes the rest.
        dropout: Attention dropout; null keeps the model's own.
    """

    def __init__(
        self,
        model_name: str,
        weights: Literal["pretrained", "random"] = "pretrained",
        dtype: torch.dtype = torch.float32,
        attention: AttentionBackend = "documents",
        chunk_size: int = 512,
        gradient_checkpointing: GradientCheckpointing = False,
        dropout: float | None = None,
    ) -> None:
        super().__init__()
        self.attention = attention
        self.chunk_size = chunk_size
        self.model: PreTrainedModel = load_model(model_name, weights, dtype, transformers_name(attention), dropout)
        if gradient_checkpointing:
            recompute_layers(self.model, selective=gradient_checkpointing == "selective")

    @property
    def config(self) -> PretrainedConfig:
        """The transformers configuration."""
        return self.model.config

    def forward(
        self,
        batch: Batch,
        correct: bool = False,
        mean_logits: bool = False,
        only_sums_of: Sequence[int] | None = None,
    ) -> TokenScores:
        """Score every position that has a target.

        Args:
            batch: Rows of documents.
            correct: Say too whether the target has the largest logit.
            mean_logits: Say too what the mean logit is.
            only_sums_of: Targets of each sequence, in order: only their sums are differentiated, which saves a product
                where they are few. Then `sums` has the gradient, and `logps` none.

        Raises:
            ValueError: If a document is longer than the model's positions, or the backend can't run the batch.
        """
        hidden_MH = self.hidden_states(batch)
        weight_VH = self.model.get_output_embeddings().weight
        targets_M = batch.targets.view(-1)[batch.trained]
        sums = None
        if only_sums_of is not None:
            sums, logps, hits = summed_logps(hidden_MH, weight_VH, targets_M, only_sums_of, self.chunk_size, correct)
        else:
            logps, hits = token_logps(hidden_MH, weight_VH, targets_M, self.chunk_size, correct)
        with torch.no_grad():
            # mean_v(h . W_v) = h . mean_v(W_v): the mean logit without the logits.
            means = hidden_MH.float() @ weight_VH.mean(dim=0, dtype=torch.float32) if mean_logits else None
        document, branch = (field.view(-1)[batch.trained] for field in (batch.document, batch.branch))
        return TokenScores(logps, hits, means, document, branch, sums)

    def hidden_states(self, batch: Batch) -> Tensor:
        """Last hidden states at the positions with a target, [M, H]; documents and branches see only what
        `functional.attention` lets them."""
        self._check_length(batch)
        inputs = render(batch, self.attention, self.model.dtype)
        # A cache would make transformers forget the position ids' borders, and costs memory.
        output = self.model.base_model(
            input_ids=inputs.input_ids,
            position_ids=inputs.position_ids,
            attention_mask=inputs.mask,
            use_cache=False,
            **inputs.options,
        )
        return output.last_hidden_state.flatten(0, 1)[inputs.trained]

    def _check_length(self, batch: Batch) -> None:
        length = max((max(p.shared + max(p.chosen, p.rejected) for p in row) for row in batch.layout), default=0)
        limit = self.config.max_position_embeddings
        if length > limit:
            raise ValueError(f"a row has {length} tokens, but the model has {limit} positions: lower `data.max_length`")
        window = getattr(self.config, "sliding_window", None)
        masked_by_us = self.attention == "documents" or not batch.causal
        if masked_by_us and window is not None and length > window:
            raise ValueError(
                f"a row has {length} tokens, and the model's attention reaches back {window}, which smollit's masks do"
                " not have yet: lower `data.max_length` so that a row fits into the window, or set `model.attention:"
                " sdpa` for chats without packing"
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
        with for_generation(self.model):
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


def _until_stop(token_ids: list[int], stop_ids: list[int]) -> list[int]:
    for position, token_id in enumerate(token_ids):
        if token_id in stop_ids:
            return token_ids[:position]
    return token_ids
