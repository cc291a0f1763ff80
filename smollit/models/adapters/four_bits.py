"""Frozen weights in 4 bits: QLoRA, https://arxiv.org/abs/2305.14314."""

import sys
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

Quantize = Literal["nf4", "nf4-dq"]  # as Lightning's BitsandbytesPrecision names them


def quantize(model: PreTrainedModel, kind: Quantize, *, device: torch.device, compute_dtype: torch.dtype) -> None:
    """Store the weights of linear layers but the head in 4 bits, in place.

    Layers whose rows are no whole blocks of 64 stay as they are: bitsandbytes reads them wrongly on CPUs.

    Args:
        model: The model, in its own precision.
        kind: `nf4`; `nf4-dq` quantizes the scales too.
        device: Where the model is going to compute; the weights are quantized where they are.
        compute_dtype: dtype of matrix products.

    Raises:
        ValueError: If bitsandbytes is not installed or can't compute there, or no layer can be stored so.
    """
    if find_spec("bitsandbytes") is None:
        raise ValueError("`model.quantize` needs the package bitsandbytes: pip install 'smollit[qlora]'")
    from bitsandbytes import supported_torch_devices

    if device.type not in supported_torch_devices:
        raise ValueError(f"`model.quantize` can't compute on {device.type}: bitsandbytes does not support it")
    head = model.get_output_embeddings()
    layers = {n: layer for n, layer in model.named_modules() if isinstance(layer, nn.Linear) and layer is not head}
    whole = {name: layer for name, layer in layers.items() if layer.in_features % 64 == 0}
    if not whole:
        raise ValueError("`model.quantize` needs linear layers with a multiple of 64 inputs, and there are none")
    for name, layer in whole.items():
        model.set_submodule(name, in_4_bits(layer, kind, compute_dtype))


def in_4_bits(layer: nn.Linear, kind: Quantize, compute_dtype: torch.dtype) -> nn.Linear:
    """A linear layer whose weight is quantized."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    result: Any = Linear4bit(layer.in_features, layer.out_features, False, compute_dtype=compute_dtype, device="meta")
    numbers = layer.weight.detach().bfloat16().float()  # what every precision of a run can load
    weight = Params4bit(numbers, quant_type="nf4", compress_statistics=kind == "nf4-dq")
    result.weight, result.bias = weight.to(layer.weight.device), layer.bias  # moving it quantizes it
    # Else bitsandbytes packs weights on CPUs with AVX512-BF16 for inference when a model is in eval mode: products are
    # then in bf16, and have no gradient in training afterwards.
    result.support_avx512bf16_for_cpu = False
    return result


def quantized_layers(model: nn.Module) -> list[tuple[str, Any]]:
    """Name and layer of each layer whose weight is in 4 bits; none without bitsandbytes."""
    if "bitsandbytes" not in sys.modules:
        return []
    from bitsandbytes.nn import Linear4bit

    return [(name, layer) for name, layer in model.named_modules() if isinstance(layer, Linear4bit)]


def dequantized(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of a model with the numbers that its 4-bit weights stand for, as one without quantization has it."""
    weights = {f"{name}.weight": layer.weight for name, layer in quantized_layers(model)}
    found = {name: value for name, value in state.items() if not name.startswith(tuple(f"{key}." for key in weights))}
    if weights:
        from bitsandbytes.functional import dequantize_4bit

        found |= {name: dequantize_4bit(weight.data, weight.quant_state) for name, weight in weights.items()}
    return found
