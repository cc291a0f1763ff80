"""Where a response ends: at a stop token, at the number of tokens asked for, or at the model's last position."""

import sys
from collections.abc import Sequence
from typing import Literal

import torch
from torch import FloatTensor, LongTensor
from transformers import LogitsProcessor, PretrainedConfig

Finish = Literal["stop", "max_new_tokens", "last_position", "prompt_too_long"]


def positions_of(config: PretrainedConfig) -> int:
    """Number of positions of a model; the largest integer for one without a limit, such as Mamba or BLOOM."""
    try:
        return int(config.get_text_config().max_position_embeddings or sys.maxsize)
    except AttributeError:
        return sys.maxsize


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

    def __call__(self, input_ids: LongTensor, scores: FloatTensor) -> FloatTensor:
        """Logits [N, V] with the noise of the next token."""
        logits = scores.float() / self.temperature
        noise = [
            -torch.empty_like(row).exponential_(generator=g).log()
            for row, g in zip(logits, self.generators, strict=True)
        ]
        return logits + torch.stack(noise)  # type: ignore[return-value]
