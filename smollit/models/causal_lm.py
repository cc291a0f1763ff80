"""CausalLM: the only file that loads a transformers model. forward(batch) -> TokenScores, never [R, T, V] logits."""

import hashlib
import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from smollit.batch import IGNORE, PADDING, Batch
from smollit.functional.attention import AttentionBackend, render_mask, visibility
from smollit.functional.logps import token_logps

log = logging.getLogger(__name__)
WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin")
# What these settings do to the logits is not in our head, so a model that uses one is refused.
UNSUPPORTED_HEAD_SETTINGS = ("final_logit_softcapping", "logits_scaling", "logit_scale", "lm_head_multiplier")


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
        self.model = load_model(model_name, weights, dtype, attention, dropout)
        if gradient_checkpointing:
            # The re-entrant variant needs inputs that require gradients, and breaks DDP.
            self.model.gradient_checkpointing_enable({"use_reentrant": False})

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
            mean_logits = hidden_MH.float() @ weight_VH.float().mean(dim=0)
        return TokenScores(logps, correct, mean_logits, batch.document[trained_RT], batch.branch[trained_RT])

    def hidden_states(self, batch: Batch) -> Tensor:
        """Last hidden states, [R, T, H]; documents and branches see only what `functional.attention` lets them."""
        length, limit = batch.input_ids.shape[1], self.config.max_position_embeddings
        if length > limit and batch.causal:
            raise ValueError(f"a row has {length} tokens, but the model has {limit} positions: lower `data.max_length`")
        mask = None
        if not batch.causal:
            visible = visibility(batch.document, batch.branch)
            mask = render_mask(visible, self.attention, self.model.dtype)
        # A cache would make transformers forget the position ids' borders, and costs memory.
        output = self.model.base_model(
            input_ids=batch.input_ids, position_ids=batch.position_ids, attention_mask=mask, use_cache=False
        )
        return output.last_hidden_state

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
        input_ids = torch.stack([nn.functional.pad(row, (longest - len(row), 0), value=stop_ids[0]) for row in rows])
        mask = torch.stack([nn.functional.pad(torch.ones_like(row), (longest - len(row), 0)) for row in rows])
        sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
        output = self.model.generate(
            input_ids,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            eos_token_id=stop_ids,
            pad_token_id=stop_ids[0],
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


def load_model(
    model_name: str,
    weights: Literal["pretrained", "random"],
    dtype: torch.dtype,
    attention: AttentionBackend,
    dropout: float | None,
) -> PreTrainedModel:
    """A transformers model in train mode, with one clear sentence when it can't be had."""
    config = load_config(model_name)
    for setting in UNSUPPORTED_HEAD_SETTINGS:
        if getattr(config, setting, None) not in (None, 1, 1.0):
            raise ValueError(f"`{model_name}` sets `{setting}`, which smollit's log-probabilities do not have yet")
    if dropout is not None:
        config.attention_dropout = dropout
    if weights == "random":
        with _default_dtype(dtype):
            model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    else:
        if Path(model_name).is_dir() and not any(list(Path(model_name).glob(pattern)) for pattern in WEIGHT_FILES):
            raise ValueError(
                f"`{model_name}` has a config.json but no weights (*.safetensors): give a folder with weights,"
                " or set `weights: random` to start from scratch"
            )
        model = AutoModelForCausalLM.from_pretrained(
            model_name, config=config, dtype=dtype, attn_implementation=attention
        )
    # from_pretrained returns eval mode, and Lightning keeps it: dropout and checkpointing would be off in silence.
    return model.train()


def load_config(model_name: str) -> PretrainedConfig:
    """The model's configuration.

    Raises:
        ValueError: If the folder is missing, holds no config.json, or the hub can't be reached or lacks the id.
    """
    path = Path(model_name)
    if path.is_dir() and not (path / "config.json").is_file():
        raise ValueError(f"`model_name` is the folder {path}, but it holds no config.json: give a Hugging Face folder")
    if not path.is_dir() and (path.is_absolute() or model_name.startswith((".", "runs/")) or model_name.count("/") > 1):
        raise ValueError(
            f"`model_name` is the folder {path}, which does not exist: check the path"
            " (a DPO run starts from the folder that its SFT run exported)"
        )
    try:
        return AutoConfig.from_pretrained(model_name)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"could not load `{model_name}`: it is not a local folder, and the hub did not give it"
            f" ({_first_line(error)}). Check the name and the network, or give a local folder"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _until_stop(token_ids: list[int], stop_ids: list[int]) -> list[int]:
    for position, token_id in enumerate(token_ids):
        if token_id in stop_ids:
            return token_ids[:position]
    return token_ids


class _default_dtype(nullcontext[None]):
    """New tensors get `dtype` inside the block."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __enter__(self) -> None:
        self.before = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)

    def __exit__(self, *exc_info: object) -> None:
        torch.set_default_dtype(self.before)
