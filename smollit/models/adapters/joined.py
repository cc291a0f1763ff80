"""Layers of plain LoRA that have the same input, computed together."""

from collections.abc import Sequence
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from smollit.functional.autocast import product_dtype
from smollit.functional.low_rank import low_rank_linears

SAME_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # names of layers of one module
UNFINISHED = 3  # forward passes in which not all layers are called, after which each is computed by itself


def join_layers(layers: Sequence[tuple[str, Any]], adapter: str) -> None:
    """Let layers of plain LoRA make the same sums in fewer steps, those of one input together.

    Args:
        layers: Name and layer of each, from peft, in the model's order.
        adapter: peft's name of the adapter.
    """
    plain = [(name, layer) for name, layer in layers if _is_plain(layer, adapter)]
    for _, same in groupby(plain, key=lambda named: _input_of(named[0])):
        JoinedLayers([layer for _, layer in same], adapter)


def _is_plain(layer: Any, adapter: str) -> bool:
    """Whether it is LoRA without dropout, bias or variant such as DoRA, in a frozen nn.Linear."""
    from peft.tuners.lora.layer import Linear

    plain = type(layer) is Linear and type(layer.get_base_layer()) is nn.Linear and not layer.lora_variant
    return plain and layer.lora_B[adapter].bias is None and isinstance(layer.lora_dropout[adapter], nn.Identity)


def _input_of(name: str) -> tuple[str, ...]:
    """Equal for layers that get the same input, as their names say."""
    parent, _, own = name.rpartition(".")
    return (parent, *next((names for names in SAME_INPUT if own in names), (own,)))


def forget_outputs(model: nn.Module) -> None:
    """Free what joined layers hold since a forward pass that an error has ended."""
    for module in model.modules():
        joined = getattr(vars(module).get("forward"), "func", None)
        if isinstance(owner := getattr(joined, "__self__", None), JoinedLayers):
            owner.outputs, owner.input = {}, None


class JoinedLayers:
    """Takes the place of the forward pass of layers that get the same input: the first one computes all outputs.

    Layers that turn out not to get the same tensor are computed one by one from then on, and so are those that are not
    all called, time after time; a single pass may have ended in an error, such as a probe's that ran out of memory.
    Without its adapter, merged, or compiled, a layer computes what peft does.

    Args:
        layers: peft's, with a frozen linear layer in each.
        adapter: peft's name of the adapter.
    """

    def __init__(self, layers: Sequence[Any], adapter: str) -> None:
        self.layers, self.adapter = layers, adapter
        self.unfinished = 0  # passes
        self.input: Tensor | None = None
        self.outputs: dict[int, Tensor] = {}  # that no layer has fetched yet
        for number, layer in enumerate(layers):
            layer.forward = partial(self.forward, number)

    def forward(self, number: int, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Output of a layer, [..., out], from its input, [..., in]."""
        layer = self.layers[number]
        if torch.compiler.is_compiling() or layer.disable_adapters or layer.merged or args or kwargs:
            output: Tensor = type(layer).forward(layer, x, *args, **kwargs)
            return output
        if x is not self.input or number not in self.outputs:
            if self.outputs:
                self.unfinished += 1 if number == 0 else UNFINISHED  # 0: this pass begins anew
            chosen = range(len(self.layers)) if self.unfinished < UNFINISHED else (number,)
            self.outputs = dict(zip(chosen, self._compute(x, [self.layers[each] for each in chosen]), strict=True))
        output = self.outputs.pop(number)
        self.input = x if self.outputs else None
        return output

    def _compute(self, x: Tensor, layers: Sequence[Any]) -> tuple[Tensor, ...]:
        """Outputs of these layers."""
        bases = [layer.get_base_layer() for layer in layers]
        return low_rank_linears(
            x.to(product_dtype(bases[0].weight)),
            [base.weight for base in bases],
            [base.bias for base in bases],
            [layer.lora_A[self.adapter].weight for layer in layers],
            [layer.lora_B[self.adapter].weight * layer.scaling[self.adapter] for layer in layers],
        )
