"""Adapters: small trainable weights in a frozen model, made by peft (`model.adapter`), and its own in 4 bits."""

import sys

from smollit.choices import Choice
from smollit.models.adapters.four_bits import Quantize, dequantized, quantize, quantized_layers
from smollit.models.adapters.layers import add_adapter, merged, tuners
from smollit.models.adapters.methods import Adapter, DoRA, LoRA, Peft, RSLoRA

__all__ = [
    "ADAPTERS",
    "Adapter",
    "DoRA",
    "LoRA",
    "Peft",
    "Quantize",
    "RSLoRA",
    "add_adapter",
    "dequantized",
    "merged",
    "quantize",
    "quantized_layers",
    "tuners",
]
ADAPTERS = Choice(setting="model.adapter", families=(Adapter,), shipped=sys.modules[__name__])
