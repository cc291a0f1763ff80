"""Adapters: small trainable weights in a frozen model, made by peft (`model.adapter`), and its own in 4 bits."""

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from smollit.choices import Choice
from smollit.functional.low_rank import add_low_rank

if TYPE_CHECKING:
    from peft import PeftConfig

Quantize = Literal["nf4", "nf4-dq"]  # as Lightning's BitsandbytesPrecision names them
CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # of peft's `init_lora_weights`
INSTEAD = "leave it out; `model.adapter.vocabulary: true` trains embeddings and head in full"
NAME = "default"  # peft's name of the adapter, which is part of its weights' names


@dataclass(frozen=True, kw_only=True)
class Adapter(ABC):
    """Small trainable weights inside a frozen model. A subclass is a frozen dataclass with `peft_config`.

    Args:
        vocabulary: Also train the embeddings and the head, in full: for new tokens. DPO then needs a second model as
            its reference.
    """

    vocabulary: bool = False

    @abstractmethod
    def peft_config(self) -> "PeftConfig":
        """The configuration that peft builds the adapter from."""


@dataclass(frozen=True, kw_only=True)
class LoRA(Adapter):
    """W + (alpha / r) B A for each linear layer but the head: https://arxiv.org/abs/2106.09685. B starts at 0.

    A learning rate that suits it is about ten times that of full fine-tuning.

    Args:
        r: Rank of B A.
        alpha: Scale of B A, divided by r.
        dropout: Dropout before A. 0 by default, because its noise would count as reward in DPO.
        targets: Names of the linear layers, such as [q_proj, v_proj]; null means all but the head.
    """

    rank_stabilized: ClassVar[bool] = False
    has_magnitude: ClassVar[bool] = False
    r: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: list[str] | None = None

    def __post_init__(self) -> None:
        if self.r < 1:
            raise ValueError(f"`model.adapter.r` must be at least 1, got {self.r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"`model.adapter.dropout` must be at least 0 and below 1, got {self.dropout}")

    def peft_config(self) -> "PeftConfig":
        """peft.LoraConfig."""
        from peft import LoraConfig

        return LoraConfig(
            r=self.r,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # peft says int, and divides it
            lora_dropout=self.dropout,
            target_modules=self.targets or "all-linear",
            use_rslora=self.rank_stabilized,
            use_dora=self.has_magnitude,
            task_type="CAUSAL_LM",
        )


@dataclass(frozen=True, kw_only=True)
class RSLoRA(LoRA):
    """LoRA with the scale alpha / sqrt(r), which does not shrink with the rank: https://arxiv.org/abs/2312.03732."""

    rank_stabilized: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class DoRA(LoRA):
    """LoRA of the direction of W, and a trained magnitude of each of its columns: https://arxiv.org/abs/2402.09353."""

    has_magnitude: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class Peft(Adapter):
    """Any method of peft that changes the model's layers in place, by its configuration class.

    Args:
        config: Import path of the configuration, such as peft.IA3Config.
        options: Its arguments.
    """

    config: str
    options: dict[str, Any] | None = None

    def peft_config(self) -> "PeftConfig":
        """The configuration, by its path."""
        module, _, name = self.config.rpartition(".")
        start = str((self.options or {}).get("init_lora_weights")).partition("_niter")[0].lower()
        if start in CHANGE_THE_BASE:
            raise ValueError(
                f"`model.adapter.options`: `init_lora_weights: {start}` changes the frozen weights too, which"
                " checkpoints and the reference of DPO take from `model.model_name`: leave it out"
            )
        try:
            found: PeftConfig = getattr(import_module(module), name)(**(self.options or {}))
        except (ImportError, AttributeError, ValueError, TypeError) as error:
            raise ValueError(f"`model.adapter.config` {self.config} can't be made: {error}") from error
        return found


def add_adapter(model: PreTrainedModel, adapter: Adapter) -> None:
    """Freeze a model and put an adapter into it, in place. The names of its layers stay.

    Raises:
        ValueError: If peft is not installed, or can't put this adapter into this model.
    """
    if find_spec("peft") is None:
        raise ValueError("`model.adapter` needs the package peft: pip install 'smollit[lora]'")
    from peft import inject_adapter_in_model

    config = adapter.peft_config()
    try:
        inject_adapter_in_model(config, model, adapter_name=NAME)
    except ValueError as error:
        advice = " That holds experts: name other layers in `model.adapter.targets`" * ("ParamWrapper" in str(error))
        raise ValueError(f"`model.adapter` does not fit this model: {error}{advice}") from error
    _check_trained(model)
    _add_in_place(model)
    if adapter.vocabulary:
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            layer.requires_grad_(True)


class InPlace:
    """The forward pass of LoRA whose product is added in place: a variant in the sense of peft's LoraVariant."""

    @staticmethod
    def forward(module: Any, active_adapter: str, x: Tensor, result: Tensor, **_: Any) -> Tensor:
        """The output of the layer, from that of its frozen weight."""
        a, b = module.lora_A[active_adapter].weight, module.lora_B[active_adapter].weight
        return add_low_rank(result, x, a, b, module.scaling[active_adapter])

    @staticmethod
    def merge_safe(module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """The weight with the adapter."""
        merged: Tensor = orig_weight + module.get_delta_weight(active_adapter).to(orig_weight.dtype)
        return merged

    @staticmethod
    def merge_unsafe(module: Any, active_adapter: str, orig_weight: Tensor) -> None:
        """Add the adapter to the weight."""
        orig_weight.data += module.get_delta_weight(active_adapter).to(orig_weight.dtype)

    @staticmethod
    def unmerge(module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """The weight without the adapter."""
        original: Tensor = orig_weight - module.get_delta_weight(active_adapter).to(orig_weight.dtype)
        return original


def _add_in_place(model: PreTrainedModel) -> None:
    """Let the layers of plain LoRA without dropout make the same sums in fewer steps."""
    from peft.tuners.lora.layer import Linear

    for _, layer in tuners(model):
        plain = type(layer) is Linear and isinstance(layer.get_base_layer(), nn.Linear) and not layer.lora_variant
        if plain and layer.lora_B[NAME].bias is None and isinstance(layer.lora_dropout[NAME], nn.Identity):
            layer.lora_variant[NAME] = InPlace()
            layer.cast_input_dtype_enabled = False  # add_low_rank casts


def _check_trained(model: PreTrainedModel) -> None:
    """Refuse what the head in chunks, the reference without the adapter, or a merged export would not respect.

    Raises:
        ValueError: If the adapter is in the head, or in embeddings that are the head too, or trains other weights.
    """
    from peft.utils import AuxiliaryTrainingWrapper

    layers, head = tuners(model), model.get_output_embeddings()
    for name, layer in layers:
        if layer is head or any(weight is head.weight for weight in layer.get_base_layer().parameters(recurse=False)):
            raise ValueError(f"`model.adapter` can't be in {name}, which is the head or tied to it: {INSTEAD}")
    own = tuple(f"{name}.{part}." for name, layer in layers for part in layer.adapter_layer_names)
    others = [name for name, module in model.named_modules() if isinstance(module, AuxiliaryTrainingWrapper)]
    others += [n for n, weight in model.named_parameters() if weight.requires_grad and not n.startswith(own)]
    if others:
        raise ValueError(f"`model.adapter` would also train {others[0]}, which is no part of an adapter: {INSTEAD}")


def quantize(model: PreTrainedModel, kind: Quantize, *, device: torch.device, compute_dtype: torch.dtype) -> None:
    """Store the weights of linear layers but the head in 4 bits, in place: QLoRA, https://arxiv.org/abs/2305.14314.

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


def tuners(model: nn.Module) -> list[tuple[str, Any]]:
    """Name and layer of each layer that holds a part of an adapter; none without peft."""
    if find_spec("peft") is None:
        return []
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [(name, module) for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]


def merged(model: nn.Module) -> nn.Module:
    """A copy of a model whose adapter is added to its weights: the names of its parameters are those without one."""
    copied = deepcopy(model)
    for name, layer in tuners(copied):
        layer.merge(safe_merge=True)
        parent, _, child = name.rpartition(".")
        if child != "base_layer":  # experts are wrapped once more for each of their weights
            setattr(copied.get_submodule(parent), child, layer.get_base_layer())
    return copied


ADAPTERS = Choice(setting="model.adapter", families=(Adapter,), shipped=sys.modules[__name__])
