"""An adapter in an export: merged into the model's weights, or as a folder of its own that peft loads."""

from pathlib import Path

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from smollit.models.adapters import Adapter, merged


def merged_weights(model: PreTrainedModel, adapter: Adapter, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The trained weights with the adapter added to them, under the names that they have without one.

    Args:
        model: A model without weights of its own, which is used up.
        adapter: The adapter of the run.
        weights: Weights of the model with the adapter, under transformers' names.
    """
    get_peft_model(model, adapter.peft_config())
    model.load_state_dict(weights)
    return merged(model).state_dict()


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
    reread_wrapped = PeftModel.from_pretrained(base_model(base, config), folder).eval()
    ids = torch.arange(1, 17)[None] % config.vocab_size
    with torch.no_grad():
        if not torch.allclose(wrapped.eval()(ids).logits, reread_wrapped(ids).logits, rtol=1e-5, atol=1e-5):
            raise RuntimeError(
                "the exported adapter, on top of its base model, gives other logits than the trained one"
            )


def base_model(base: str, config: PretrainedConfig) -> PreTrainedModel:
    """The base model in fp32, with an embedding for each token of the configuration."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if model.config.vocab_size < config.vocab_size:
        model.resize_token_embeddings(config.vocab_size)
    return model
