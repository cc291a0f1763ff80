"""How responses are made: where they end, how they are sampled, and the cache of their keys and values."""

import inspect
import sys
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import FloatTensor, LongTensor, Tensor, nn
from transformers import DynamicCache, LogitsProcessor, LogitsProcessorList, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from smollit.models.attention.kernels import heads_of

ROUND = 64  # new tokens after which ended responses are taken out of a batch
ROOM = 256  # tokens for which a cache keeps more room than it needs
Finish = Literal["stop", "max_new_tokens", "last_position", "prompt_too_long"]


def positions_of(config: PretrainedConfig) -> int:
    """Number of positions of a model; the largest integer for one without a limit, such as Mamba or BLOOM."""
    try:
        return int(config.get_text_config().max_position_embeddings or sys.maxsize)
    except AttributeError:
        return sys.maxsize


def cache_bytes(config: PretrainedConfig, dtype: torch.dtype) -> int:
    """Size of a token's keys and values in all layers, in bytes; of a model with other layers, of their like."""
    _, keys, size = heads_of(config)
    return 2 * int(config.get_text_config(decoder=True).num_hidden_layers) * keys * size * dtype.itemsize


def finish_of(num_prompt_tokens: int, num_new_tokens: int, *, max_new_tokens: int, positions: int) -> Finish:
    """Why a response has this number of tokens, without its stop token.

    Args:
        num_prompt_tokens: Number of tokens of the prompt.
        num_new_tokens: Number of tokens of the response.
        max_new_tokens: Maximum number of tokens of a response.
        positions: Number of positions of the model, which prompt and response share.
    """
    left = positions - num_prompt_tokens
    if left <= 0:
        return "prompt_too_long"
    if num_new_tokens < min(max_new_tokens, left):
        return "stop"
    return "last_position" if left < max_new_tokens else "max_new_tokens"


def until_stop(token_ids: list[int], stop_ids: list[int]) -> list[int]:
    """The tokens before the first stop token."""
    for index, token_id in enumerate(token_ids):
        if token_id in stop_ids:
            return token_ids[:index]
    return token_ids


class Sampling(LogitsProcessor):
    """Samples at a temperature, each prompt with random numbers of its own: a response does not depend on its batch.

    The largest of log p(v) + g(v), where g is Gumbel noise, is a sample of p: https://arxiv.org/abs/1411.0030. So it is
    to be used with greedy decoding.

    Args:
        temperature: Sampling temperature.
        seeds: Seed of each prompt.
        device: Device of the logits.
    """

    def __init__(self, temperature: float, seeds: Sequence[int], device: torch.device) -> None:
        self.temperature = temperature
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def keep(self, indices: Sequence[int]) -> None:
        """Go on with these prompts of the batch."""
        self.generators = [self.generators[index] for index in indices]

    def __call__(self, input_ids: LongTensor, scores: FloatTensor) -> FloatTensor:
        """Logits [N, V] with the noise of the next token."""
        logits = scores.float() / self.temperature
        noise = [
            -torch.empty_like(row).exponential_(generator=g).log()
            for row, g in zip(logits, self.generators, strict=True)
        ]
        return logits + torch.stack(noise)  # type: ignore[return-value]


def continue_prompts(
    model: PreTrainedModel,
    prompts: Sequence[Tensor],
    *,
    max_new_tokens: int,
    stop_ids: list[int],
    sampling: Sampling | None,
) -> list[list[int]]:
    """The new tokens of each prompt, without the stop token.

    Responses that have ended leave the batch after each ROUND, where the model's cache lets them.
    """
    longest, pad = max(map(len, prompts)), stop_ids[0] if stop_ids else 0
    # Left padding, with a mask: the next token of every prompt is then at the last position.
    ids = torch.stack([nn.functional.pad(prompt, (longest - len(prompt), 0), value=pad) for prompt in prompts])
    mask = torch.stack([nn.functional.pad(torch.ones_like(p), (longest - len(p), 0)) for p in prompts])
    cache = roomy_cache(model)
    rows, found, left = list(range(len(prompts))), [list[int]() for _ in prompts], max_new_tokens
    while left:
        new = min(left, ROUND) if cache else left
        ids = model.generate(  # type: ignore[operator]
            ids,
            attention_mask=mask,
            max_new_tokens=new,
            eos_token_id=stop_ids or None,
            pad_token_id=pad,
            use_cache=True,
            do_sample=False,
            logits_processor=LogitsProcessorList([sampling] if sampling else []),
            **cache,
        )
        left -= new
        for row, tokens in zip(rows, ids[:, longest:].tolist(), strict=True):
            found[row] = until_stop(tokens, stop_ids)
        going = [index for index, row in enumerate(rows) if len(found[row]) == ids.shape[1] - longest]
        if not going:
            break
        if len(going) < len(rows):
            rows, ids, mask = [rows[index] for index in going], ids[going], mask[going]
            for each in cache.values():
                each.batch_select_indices(torch.tensor(going, device=ids.device))
            if sampling:
                sampling.keep(going)
        mask = nn.functional.pad(mask, (0, ids.shape[1] - mask.shape[1]), value=1)
    return found


class RoomyLayer(DynamicLayer):
    """Keys and values of a layer, [N, heads, tokens, D] each, with room for more tokens.

    transformers' own layer copies all of them for each token.
    """

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append, and return all."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.parts = (Room(), Room())
        keys, values = self.parts
        self.keys, self.values = keys.append(self.keys, key_states), values.append(self.values, value_states)
        return self.keys, self.values


class Room:
    """A tensor that is longer than what it holds, along its last dimension but one."""

    def __init__(self) -> None:
        self.whole: Tensor | None = None
        self.filled: Tensor | None = None

    def append(self, old: Tensor | None, new: Tensor) -> Tensor:
        """`old`, which this returned before, and `new` after it."""
        start = 0 if old is None or old.numel() == 0 else old.shape[-2]
        end = start + new.shape[-2]
        if self.whole is None or old is not self.filled or end > self.whole.shape[-2]:
            self.whole = new.new_empty(*new.shape[:-2], end + ROOM, new.shape[-1])
            if start and old is not None:
                self.whole[..., :start, :] = old
        self.whole[..., start:end, :] = new
        self.filled = self.whole[..., :end, :]
        return self.filled


def roomy_cache(model: PreTrainedModel) -> dict[str, DynamicCache]:
    """The argument of `generate` that makes a model keep keys and values in RoomyLayers.

    Empty for a model whose cache has other layers than those of plain attention: it makes its own.
    """
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    if not cache.layers or any(type(layer) is not DynamicLayer for layer in cache.layers):
        return {}
    cache.layers = [RoomyLayer() for _ in cache.layers]
    names = inspect.signature(model.forward).parameters
    return {name: cache for name in ("cache", "past_key_values") if name in names}  # by the version of transformers
