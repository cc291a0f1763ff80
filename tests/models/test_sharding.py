"""Sharding on one process: what is wrapped, what is reduced in fp32, and the norm of gradients."""

import re
from pathlib import Path

import pytest
import torch
from lightning.pytorch.plugins.precision import FSDPPrecision
from torch import nn

from smollit.models import CausalLM
from smollit.models.sharding import decoder_layers, gradient_norm, scale_gradients, shard, unwrap
from smollit.training.options import ShardedStrategy
from tests.models.families import save_family


# case: fsdp-04
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed", "bf16-true"])
def test_fsdp_reduces_gradients_and_keeps_frequencies_and_scores_in_fp32(precision: str) -> None:
    """Lightning's own config reduces in 16 bits and rounds buffers, and the numbers of a batch, to 16 bits."""
    config = ShardedStrategy(precision_plugin=FSDPPrecision(precision)).mixed_precision_config  # type: ignore[arg-type]
    assert config is not None
    assert config.reduce_dtype == config.buffer_dtype == torch.float32
    assert not config.cast_root_forward_inputs


def test_without_a_sharding_strategy_the_model_is_as_it_was(tiny_model: Path) -> None:
    """`wrap` outside Lightning's FSDP context does nothing."""
    model = CausalLM(str(tiny_model))
    before = [type(module) for module in model.modules()]
    assert [type(module) for module in shard(model, None).modules()] == before
    assert unwrap(model) is model


def test_norm_and_scale_of_gradients() -> None:
    """Gradients 3 and 4: norm 5; halved: 2.5. A parameter without a gradient is passed over."""
    model = nn.Linear(2, 1)
    model.weight.grad = torch.tensor([[3.0, 4.0]])
    assert gradient_norm(model).item() == 5.0
    scale_gradients(model.parameters(), torch.tensor(0.5))
    assert gradient_norm(model).item() == 2.5
    assert model.bias.grad is None


@pytest.mark.parametrize("family", ["Llama, SmolLM, SmolLM2", "GPT-2", "OPT", "BLOOM", "GPT-J", "Mixtral", "Mamba"])
def test_the_decoder_layers_of_a_family_are_found(family: str, tmp_path: Path) -> None:
    """`layers`, `h`, `decoder.layers`: each weight with a number in its name is in one of the two."""
    model = CausalLM(str(save_family(family, tmp_path)), weights="random")
    layers = decoder_layers(model)
    inside = {id(weight) for weight in layers.parameters()}
    numbered = {id(weight) for name, weight in model.named_parameters() if re.search(r"\.[01]\.", name)}
    assert len(layers) == 2 and numbered == inside
    model.config.num_hidden_layers = 3
    with pytest.raises(ValueError, match="has no list of its 3 decoder layers"):
        decoder_layers(model)
