"""An adapter in a model: put in, found again, and merged into a copy."""

from copy import deepcopy
from importlib.util import find_spec
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from smollit.models.adapters.four_bits import quantized_layers
from smollit.models.adapters.joined import join_layers
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
    _check_merges(model)
    join_layers(tuners(model), NAME)
    if adapter.vocabulary:
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            layer.requires_grad_(True)


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


def _check_merges(model: PreTrainedModel) -> None:
    """Merge a copy of one layer of each kind: an export would be refused after the whole training.

    A layer of LoRA in 4 bits is tried on other numbers, since an export merges into those that they stand for.

    Raises:
        ValueError: If peft can't merge a layer.
    """
    from peft.tuners.lora import LoraLayer

    in_4_bits = {layer for _, layer in quantized_layers(model)}
    kinds = {}
    for name, layer in tuners(model):
        base = layer.get_base_layer()
        kinds[type(layer), type(base), tuple(dict(base.named_parameters(recurse=False)))] = name, layer
    for name, layer in kinds.values():
        base, copied = layer.get_base_layer(), deepcopy(layer)
        if base in in_4_bits:
            if not isinstance(layer, LoraLayer):
                continue
            copied.base_layer = nn.Linear(base.in_features, base.out_features, bias=base.bias is not None)
        try:
            copied.merge(safe_merge=True)
        except (ValueError, RuntimeError) as error:
            raise ValueError(
                f"`model.adapter` could not be merged into {name} for an export:"
                f" {str(error) or type(error).__name__}. Take another adapter, or leave that option out"
            ) from error


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
