"""CausalLM: a transformers model that scores loss tokens. forward(batch) -> TokenScores, never [R, T, V] logits."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from smollit.batch import PADDING, Batch
from smollit.functional.attention import AttentionSetting
from smollit.functional.head import Head
from smollit.functional.logps import summed_logps, token_logps
from smollit.functional.scores import TokenScores
from smollit.functional.sums import sequence_index, sum_per_sequence
from smollit.models.attention.functions import NAMES
from smollit.models.attention.inputs import attention_windows, loss_hidden_states
from smollit.models.attention.verify import verified_attention, verified_logits
from smollit.models.generation import Sampling, continue_prompts, positions_of
from smollit.models.pretrained import load_model
from smollit.models.recompute import GradientCheckpointing, recompute_layers

CPU = torch.device("cpu")


class CausalLM(nn.Module):
    """A Llama-like causal language model that scores loss tokens in chunks.

    Args:
        model_name: Hub id or local folder, in Hugging Face format.
        weights: `pretrained` loads the weights; `random` reads only the configuration and starts from scratch.
        dtype: dtype of the weights. Keep fp32 unless the trainer's precision ends in `-true`.
        attention: Attention backend: see `functional.attention`. `auto` takes the first that is right for the model.
        device: Where the model is going to compute; `auto` depends on it. The model itself is loaded on the CPU.
        compute_dtype: dtype of autocast; null computes in the dtype of the weights.
        chunk_size: Tokens per chunk of the LM head: bounds peak logits memory.
        gradient_checkpointing: true recomputes each layer in the backward pass; `selective` keeps the results of
            matrix products and attention, and recomputes the rest.
        dropout: Dropout, wherever the model has some; null keeps the model's.
    """

    def __init__(
        self,
        model_name: str,
        *,
        weights: Literal["pretrained", "random"] = "pretrained",
        dtype: torch.dtype = torch.float32,
        attention: AttentionSetting = "auto",
        device: torch.device = CPU,
        compute_dtype: torch.dtype | None = None,
        chunk_size: int = 512,
        gradient_checkpointing: GradientCheckpointing = False,
        dropout: float | None = None,
    ) -> None:
        super().__init__()
        self.chunk_size = chunk_size
        self.model: PreTrainedModel = load_model(model_name, weights=weights, dtype=dtype, dropout=dropout)
        self.logit_scaling = verified_logits(self.model, model_name)
        self.attention, self.plain_attention = verified_attention(self.model, attention, device, compute_dtype or dtype)
        self.windows = attention_windows(self.model)
        self._set_attention(NAMES.get(self.attention, self.plain_attention))
        self.gradient_checkpointing = gradient_checkpointing
        if gradient_checkpointing:
            recompute_layers(self.model, selective=gradient_checkpointing == "selective")

    @property
    def config(self) -> PretrainedConfig:
        """The transformers configuration."""
        return self.model.config

    def forward(
        self,
        batch: Batch,
        *,
        correct: bool = False,
        entropy: bool = False,
        mean_logits: bool = False,
        token_gradients: bool = False,
        relative_logps: bool = False,
        excess_logits: bool = False,
    ) -> TokenScores:
        """Score every loss token.

        Args:
            batch: Chats, or responses to prompts.
            correct: Also compute where the label has the largest logit.
            entropy: Also compute the entropy of the model's distribution at each loss token.
            mean_logits: Also compute the mean logit of each loss token.
            token_gradients: Make every token's log-probability differentiable, for a loss that is more than a function
                of the sums. Without it, the head saves a matrix product where a batch has one or two sums.
            relative_logps: Also compute log p - log sum_v p_v^2 of each loss token, at the cost of one matrix product.
            excess_logits: Also compute the logit of each label minus the mean logit, with gradient.

        Raises:
            ValueError: If a document is longer than the model's positions, or the backend can't run the batch.
        """
        hidden_MH = self.hidden_states(batch)
        head, size = self.head(), self.chunk_size
        folded, cap = head.folded(hidden_MH), head.scaling.softcap
        labels_M = batch.labels.view(-1)[batch.loss_positions]
        lengths = [batch.num_loss_tokens] if batch.pairs is None else batch.response_lengths
        response_M = sequence_index(lengths, labels_M.device)
        if token_gradients:
            logps, hits, entropies = token_logps(
                *folded, labels_M, chunk_size=size, correct=correct, entropy=entropy, softcap=cap
            )
            sums = sum_per_sequence(logps, response_M, len(lengths))
        else:
            sums, logps, hits, entropies = summed_logps(
                *folded, labels_M, lengths=lengths, chunk_size=size, correct=correct, entropy=entropy, softcap=cap
            )
        means = head.mean_logits(hidden_MH, chunk_size=self.chunk_size) if mean_logits else None
        scores = TokenScores(sums, logps, response_M, hits, means, batch.pairs, batch.score_gap, entropies)
        if relative_logps:
            relative = logps.detach() - head.log_sum_squares(hidden_MH, chunk_size=size)
            scores = scores._replace(relative_logps=relative)
        return scores._replace(excess_logits=head.excess_logits(hidden_MH, labels_M)) if excess_logits else scores

    def head(self) -> Head:
        """The model's head, with what the model does to its output."""
        linear = self.model.get_output_embeddings()
        return Head(linear.weight, linear.bias, self.logit_scaling)

    def hidden_states(self, batch: Batch) -> Tensor:
        """Last hidden states at the loss positions, [M, H], under the attention mask of documents and branches."""
        self._check_length(batch)
        return loss_hidden_states(self.model, batch, self.attention, self.windows)

    def _check_length(self, batch: Batch) -> None:
        length = max((document.context_length for documents in batch.layout for document in documents), default=0)
        limit = positions_of(self.config)
        if length > limit:
            raise ValueError(
                f"an example has {length} tokens, but the model has {limit} positions: lower `data.max_length`"
            )

    def _set_attention(self, name: str) -> None:
        if self.attention != "rows":  # not every model can change its attention
            self.model.set_attn_implementation(name)

    @torch.no_grad()
    def generate(
        self, batch: Batch, max_new_tokens: int, stop_ids: list[int], temperature: float = 0.0, *, seed: int = 0
    ) -> list[list[int]]:
        """Continue each prompt; returns the new token ids of each, without the stop token.

        A response ends at the model's last position at the latest; a prompt that reaches it gets none: `finish_of`.

        Args:
            batch: Prompts: sequences of one document each, without responses.
            max_new_tokens: Maximum number of tokens of a response.
            stop_ids: Tokens that end a response.
            temperature: Sampling temperature; 0 decodes greedily.
            seed: Seed of the sampling; each row of the data set has random numbers of its own.
        """
        seeds = [(seed * 1_000_003 + row) % 2**63 for row in batch.example_ids.tolist()]
        prompts = [ids[document != PADDING] for ids, document in zip(batch.input_ids, batch.document, strict=True)]
        left = [positions_of(self.config) - len(ids) for ids in prompts]
        if min(left) >= max_new_tokens:
            return self._continue(prompts, max_new_tokens, stop_ids, temperature, seeds)
        # Together, the shorter prompts would continue beyond the last position of the longer ones.
        return [
            self._continue([ids], min(max_new_tokens, room), stop_ids, temperature, [own])[0] if room > 0 else []
            for ids, room, own in zip(prompts, left, seeds, strict=True)
        ]

    def _continue(
        self, prompts: list[Tensor], max_new_tokens: int, stop_ids: list[int], temperature: float, seeds: list[int]
    ) -> list[list[int]]:
        sampling = Sampling(temperature, seeds, prompts[0].device) if temperature else None
        with self.plain() as model:
            return continue_prompts(model, prompts, max_new_tokens=max_new_tokens, stop_ids=stop_ids, sampling=sampling)

    @contextmanager
    def plain(self) -> Iterator[PreTrainedModel]:
        """The transformers model, which inside the block attends as transformers does, and is not compiled."""
        self._set_attention(self.plain_attention)
        try:
            # Compiled layers would be compiled anew for a cache, and the compiler gives up after a few recompilations.
            with torch.compiler.set_stance("force_eager"):
                yield self.model
        finally:
            self._set_attention(NAMES.get(self.attention, self.plain_attention))
