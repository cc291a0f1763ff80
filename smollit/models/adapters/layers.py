"""An adapter in a model: put in, found again, and merged into a copy."""

from copy import deepcopy
from importlib.util import find_spec
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from smollit.functional.low_rank import add_low_rank
from smollit.models.adapters.methods import Adapter

INSTEAD = "leave it out; `model.adapter.vocabulary: true` trains embeddings and head in full"
NAME = "default"  # peft's name of the adapter, which is part of its weights' names


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
