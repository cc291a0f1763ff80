"""An adapter in an export: merged into the model's weights, or as a folder of its own that peft loads."""

from pathlib import Path

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from smollit.commands.export.compare import EXACT, ROUNDED, relative_errors
from smollit.models.adapters import Adapter, merged, quantized_layers
from smollit.models.causal_lm import CausalLM


def merged_weights(
    model: PreTrainedModel, adapter: Adapter, weights: dict[str, Tensor], policy: CausalLM | None
) -> dict[str, Tensor]:
    """The trained weights with the adapter added to them, under the names that they have without one.

    Args:
        model: A model without weights of its own, which is used up.
        adapter: The adapter of the run.
        weights: Weights of the model with the adapter, under transformers' names.
        policy: The policy that they are of; None where its weights are sharded.

    Raises:
        RuntimeError: If the merged model gives other logits than the model with its adapter, or than the policy.
    """
    # Some methods, such as OSF, decompose the weights that they find, and keep parts that are in no state.
    model.load_state_dict({name.replace(".base_layer", ""): each for name, each in weights.items()}, strict=False)
    get_peft_model(model, adapter.peft_config())
    model.load_state_dict(weights)
    result = merged(model)
    assert isinstance(result, PreTrainedModel)
    check_same(probe_logits(result), probe_logits(model), EXACT)
    if policy is not None:
        with policy.plain() as trained:
            is_exact = trained.dtype == torch.float32 and trained.device.type == "cpu" and not quantized_layers(trained)
            check_same(probe_logits(result), probe_logits(trained), EXACT if is_exact else ROUNDED)
    return result.state_dict()


@torch.no_grad()
def probe_logits(model: PreTrainedModel | PeftModel) -> Tensor:
    """The logits of a transformers model for a few tokens, [T, V], in fp32 on the CPU."""
    training = model.training
    ids = torch.arange(1, 17, device=model.device)[None] % model.config.vocab_size
    with torch.autocast(model.device.type, enabled=False):
        logits: Tensor = model.eval()(input_ids=ids, use_cache=False).logits[0].float().cpu()
    model.train(training)
    return logits


def check_same(found: Tensor, expected: Tensor, limit: float) -> None:
    """Compare two [T, V], by the median over positions: rounding may send a token to other experts.

    Raises:
        RuntimeError: If they differ by more than the limit, relative to the size of the logits.
    """
    error = relative_errors(found, expected).median()
    if not error <= limit:
        raise RuntimeError(
            f"with `model.adapter` merged, the model gives other logits than the trained one (error {error:.1g}):"
            " peft can't merge this adapter as it was trained. `--form adapter` exports it alone"
        )


def write_adapter(
    folder: Path, config: PretrainedConfig, *, adapter: Adapter, weights: dict[str, Tensor], base: str
) -> None:
    """Write adapter_config.json and adapter_model.safetensors, and read them back on top of the base model.

    Args:
        folder: An empty folder.
        config: Configuration of the base model.
        adapter: The adapter of the run.
        weights: Weights of the model with the adapter, under transformers' names, but those in 4 bits.
        base: Hub id or folder of the base model, which the folder names; a folder by its whole path.

    Raises:
        RuntimeError: If the base model with the adapter that was read gives other logits.
    """
    model = base_model(base, config)
    wrapped = get_peft_model(model, adapter.peft_config())
    unknown = model.load_state_dict(weights, strict=False).unexpected_keys  # those in 4 bits are missing
    assert not unknown, unknown
    wrapped.peft_config["default"].base_model_name_or_path = str(Path(base).resolve()) if Path(base).is_dir() else base
    wrapped.save_pretrained(str(folder), save_embedding_layers=adapter.vocabulary)
    reread_wrapped = PeftModel.from_pretrained(base_model(base, config), folder)
    if not torch.allclose(probe_logits(wrapped), probe_logits(reread_wrapped), rtol=1e-5, atol=1e-5):
        raise RuntimeError("the exported adapter, on top of its base model, gives other logits than the trained one")


def base_model(base: str, config: PretrainedConfig) -> PreTrainedModel:
    """The base model in fp32, with an embedding for each token of the configuration."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if model.config.vocab_size < config.vocab_size:
        model.resize_token_embeddings(config.vocab_size)
    return model
