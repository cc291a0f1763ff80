"""torch's kernel for sequences of different lengths: where it runs, for which layers, and whether it is right there."""

import logging
from functools import cache, partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from transformers import PretrainedConfig

from smollit.batch import Document, Joined
from smollit.functional.attention import ScoreOptions, document_attention
from smollit.functional.varlen import VarlenKernel, joined_attention, varlen_reference

log = logging.getLogger(__name__)
HALF = (torch.float16, torch.bfloat16)
AMPERE = (8, 0)
LARGEST_HEAD = 256
ARGUMENTS = signature(varlen_attn).parameters
SELF_TEST = [[Document(70), Document(9, (40, 33)), Document(0, (5, 1)), Document(1)]]


def obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the kernel does not run on a device in a dtype; None if it does."""
    if device.type != "cuda":
        return "it runs on CUDA devices"
    if dtype not in HALF:
        return f"it runs in half precision, and this run in {str(dtype).removeprefix('torch.')}"
    if torch.cuda.get_device_capability(device) < AMPERE:
        return "it runs on GPUs of the Ampere generation and newer"
    return None


def fits_kernel(query: Tensor, value: Tensor, options: ScoreOptions) -> bool:
    """Whether the kernel can compute a layer; if not, the reason is logged once."""
    size = query.shape[3]
    if options.dropout:
        reason = "dropout is above 0"
    elif options.softcap is not None:
        reason = "scores have a softcap"
    elif options.window is not None and "window_size" not in ARGUMENTS:
        reason = "this version of torch has no windows in its kernel"
    elif size != value.shape[3] or size % 8 or size > LARGEST_HEAD:
        reason = f"heads have {size} and {value.shape[3]} numbers"
    else:
        return True
    _say_once(reason)
    return False


@cache
def _say_once(reason: str) -> None:
    log.info("`model.attention: varlen` computes layers as `documents` does, because %s", reason)


def kernel_for(query: Tensor) -> VarlenKernel | None:
    """torch's kernel on CUDA in half precision, the reference on a CPU, and none for other queries."""
    if query.device.type == "cpu":
        return varlen_reference
    return torch_kernel if query.is_cuda and query.dtype in HALF else None


def torch_kernel(query: Tensor, key: Tensor, value: Tensor, joined: Joined, *, options: ScoreOptions) -> Tensor:
    """`varlen_attn`, of which older versions lack some arguments."""
    own: dict[str, Any] = {"is_causal": True}
    if "window_size" in ARGUMENTS:
        own = {"window_size": (-1 if options.window is None else options.window - 1, 0)}
    groups = query.shape[1] // key.shape[1]
    if "enable_gqa" in ARGUMENTS:
        own["enable_gqa"] = groups > 1
    elif groups > 1:
        key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    boundaries, longest = (joined.query_boundaries, joined.key_boundaries), (joined.longest_query, joined.longest_key)
    output = varlen_attn(query, key, value, *boundaries, *longest, scale=options.scale, **own)
    assert isinstance(output, Tensor)
    return output


def heads_of(config: PretrainedConfig) -> tuple[int, int, int]:
    """Query heads, key heads, and the size of a head; of a model without attention, one head of its width."""
    text = config.get_text_config(decoder=True)
    queries = int(getattr(text, "num_attention_heads", None) or 1)
    keys = int(getattr(text, "num_key_value_heads", None) or queries)
    return queries, keys, int(getattr(text, "head_dim", None) or text.hidden_size // queries)


@torch.enable_grad()
def kernel_is_right(
    kernel: VarlenKernel, device: torch.device, dtype: torch.dtype, heads: tuple[int, int, int]
) -> bool:
    """Whether a kernel computes what `documents` does, forward and backward, on a small layout of chats and pairs.

    Both are compared with `documents` in fp32: the kernel may be off by twice what `documents` is off in this dtype.

    Args:
        kernel: The kernel.
        device: Where it runs.
        dtype: dtype of the run.
        heads: Those of the model, as `heads_of` gives them.
    """
    documents = [document for row in SELF_TEST for document in row]
    joined = Joined.of(SELF_TEST, width=1, loss_positions=torch.zeros(0, dtype=torch.long, device=device))
    random, (queries, keys, size) = torch.Generator().manual_seed(0), heads
    exact = [
        torch.randn(1, count, len(joined.positions), size, generator=random).to(device)
        for count in (queries, keys, keys, queries)
    ]
    inputs = [tensor.to(dtype) for tensor in exact]
    expected = _outputs([tensor.float() for tensor in inputs], lambda q, k, v: document_attention(q, k, v, documents))
    rounded = _outputs(inputs, lambda q, k, v: document_attention(q, k, v, documents))
    attend = partial(joined_attention, joined=joined, kernel=kernel, options=ScoreOptions())
    try:
        found = _outputs(inputs, attend)
    except RuntimeError as error:
        log.warning("`varlen` fails here: %s", error)
        return False
    return all(
        bool((one - right).abs().max() <= 2 * (other - right).abs().max() + 1e-5 * right.abs().max())
        for one, other, right in zip(found, rounded, expected, strict=True)
    )


def _outputs(inputs: list[Tensor], attend: Any) -> list[Tensor]:
    """The output for queries, keys and values, and their gradients for a given gradient, in fp32."""
    *inputs, gradient = [tensor.detach().requires_grad_() for tensor in inputs]
    output = attend(*inputs)
    return [tensor.float() for tensor in (output, *torch.autograd.grad(output, inputs, gradient))]
