"""The only file that loads a transformers model: with all its weights, or with an error that explains why not."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PretrainedConfig, PreTrainedModel
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from smollit.errors import first_line
from smollit.paths import check_folder, read_mapping

WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin")
EMBEDDINGS = ("embed_tokens.weight", "embed_in.weight", "wte.weight", "word_embeddings.weight")  # by family


def load_model(
    model_name: str,
    *,
    weights: Literal["pretrained", "random"],
    dtype: torch.dtype,
    dropout: float | None,
) -> PreTrainedModel:
    """Load a transformers model in train mode.

    Args:
        model_name: Hub id or local folder, in Hugging Face format.
        weights: `pretrained` loads the weights; `random` reads only the configuration and starts from scratch.
        dtype: dtype of the weights.
        dropout: Every dropout of the model; None keeps the model's.

    Raises:
        ValueError: If it can't be loaded, or has no dropout to set.
    """
    config = load_config(model_name)
    if dropout is not None:
        set_dropout(config, dropout)
    if weights == "random":
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    else:
        model = load_pretrained(model_name, config, dtype)
    # The model's own penalties, sampling and stop strings would change what `generate` is asked for, or break it.
    model.generation_config = GenerationConfig()
    _keep_buffers_in_fp32(model)
    # from_pretrained returns eval mode, and Lightning keeps it: dropout and checkpointing would be off silently.
    return model.train()


def set_dropout(config: PretrainedConfig, dropout: float) -> None:
    """Set every dropout of a model: families have more than attention's, under names of their own.

    Raises:
        ValueError: If it has none, and `dropout` is not 0.
    """
    names = [
        name
        for name, value in config.to_dict().items()
        if ("dropout" in name or name.endswith("_pdrop"))
        and isinstance(value, int | float)
        and not isinstance(value, bool)
    ]
    if dropout and not names:
        raise ValueError(f"`model.dropout` is {dropout}, and models of the type {config.model_type} have no dropout")
    for name in names:
        setattr(config, name, dropout)


def _keep_buffers_in_fp32(model: nn.Module) -> None:
    """Restore floating-point buffers, before they are used, if the whole model was cast.

    Lightning does so for bf16-true. Rotary frequencies in bf16 are off by up to 0.2 %: radians, at position 1,000.
    """
    for module in model.modules():
        originals = {
            name: buffer.clone() for name, buffer in module.named_buffers(recurse=False) if buffer.is_floating_point()
        }
        if originals:
            module.register_forward_pre_hook(_RestoreBuffers(originals))


class _RestoreBuffers:
    """A forward pre-hook that gives buffers of another dtype their original values, on the device where they are."""

    def __init__(self, originals: dict[str, Tensor]) -> None:
        self.originals = originals

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        for name, original in self.originals.items():
            buffer = module.get_buffer(name)
            if buffer.dtype != original.dtype:
                setattr(module, name, original.to(buffer.device))


def load_pretrained(model_name: str, config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The model with its weights, all of them.

    Raises:
        ValueError: If weights are missing or can't be read.
    """
    if base := adapter_base(model_name):
        return merge_adapter(load_pretrained(base, config, dtype), model_name)
    is_folder = Path(model_name).is_dir()
    if is_folder and not any(list(Path(model_name).glob(pattern)) for pattern in WEIGHT_FILES):
        raise _no_weights(model_name)
    try:
        with no_progress_bar(is_folder):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                model_name, config=config, dtype=dtype, output_loading_info=True, trust_remote_code=False
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"could not load the weights of `{model_name}` ({first_line(error)}). Check that the files are complete and"
            " belong to its config.json, or the network if it is a Hub id"
        ) from error
    model, info = loaded
    missing = sorted(info["missing_keys"])
    if missing:
        # transformers would initialize them at random.
        raise ValueError(f"the weights of `{model_name}` lack {len(missing)} tensors of its config.json: {missing[:3]}")
    return model


def adapter_base(model_name: str) -> str | None:
    """The model below the adapter in a local folder that peft wrote; None for a whole model.

    Raises:
        ValueError: If the adapter names none.
    """
    file = Path(model_name) / "adapter_config.json"
    if not file.is_file() or (Path(model_name) / "config.json").is_file():
        return None
    base: str | None = read_mapping(file).get("base_model_name_or_path")
    if not base:
        raise ValueError(f"{file} names no base model: set its `base_model_name_or_path`")
    return base


def merge_adapter(model: PreTrainedModel, folder: str) -> PreTrainedModel:
    """The model with an adapter of peft added to its weights.

    Raises:
        ValueError: If peft is not installed, or the adapter does not fit.
    """
    if find_spec("peft") is None:
        raise ValueError(f"`{folder}` holds an adapter, which needs the package peft: pip install 'smollit[lora]'")
    from peft import PeftModel

    rows, embeddings = _embedding_rows(Path(folder)), model.get_input_embeddings()
    if isinstance(embeddings, nn.Embedding) and rows > embeddings.num_embeddings:
        model.resize_token_embeddings(rows, mean_resizing=False)  # for tokens that the adapter has embeddings of
    try:
        result: PreTrainedModel = PeftModel.from_pretrained(model, folder).merge_and_unload()
    except (ValueError, RuntimeError, TypeError, KeyError, AttributeError, OSError, SafetensorError) as error:
        raise ValueError(f"the adapter in `{folder}` does not fit its base model: {first_line(error)}") from error
    return result


def _embedding_rows(folder: Path) -> int:
    """Number of tokens of the embeddings that an adapter's folder holds in full; 0 if it holds none."""
    if not (folder / "adapter_model.safetensors").is_file():
        return 0
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as weights:
        names = [name for name in weights.keys() if name.endswith(EMBEDDINGS)]  # noqa: SIM118  # no mapping
        return max((int(weights.get_slice(name).get_shape()[0]) for name in names), default=0)


def load_config(model_name: str, setting: str = "model_name") -> PretrainedConfig:
    """The model's configuration.

    Args:
        model_name: Hub id or local folder.
        setting: What the user calls it, for errors.

    Raises:
        ValueError: If the folder is missing, holds no config.json, or the Hub can't be reached or lacks the id.
    """
    if base := adapter_base(model_name):
        try:
            return load_config(base)
        except ValueError as error:
            raise ValueError(f"`{model_name}` is an adapter, and its base model can't be loaded: {error}") from error
    if (path := Path(model_name)).is_dir() and not (path / "config.json").is_file():
        raise ValueError(f"`{setting}` is the folder {path}, but it holds no config.json: give a Hugging Face folder")
    check_folder(model_name, setting)
    try:
        return AutoConfig.from_pretrained(model_name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        if "custom code" in str(error):
            raise ValueError(
                f"`{model_name}` brings code of its own, which smollit never runs: give a model whose architecture"
                " transformers has"
            ) from error
        raise ValueError(
            f"could not load `{model_name}`: not a local folder, and not found on the Hub"
            f" ({first_line(error)}). Check the name and the network, or give a local folder"
        ) from error


def weights_fingerprint(model_name: str, setting: str = "model_name") -> str:
    """Identify a model's weights without loading them: SHA-256 of its files, or the commit on the Hub.

    Args:
        model_name: Hub id or local folder.
        setting: What the user calls it, for errors.

    Raises:
        ValueError: As `load_config`, or if a folder holds no weights.
    """
    folder = Path(model_name)
    if not folder.is_dir():
        load_config(model_name, setting)  # raises an error with advice
        cached = cached_file(model_name, "config.json")
        assert cached is not None, "load_config found it"
        return f"{model_name}@{Path(cached).parent.name}"  # the Hub's cache names its folders after commits
    files = sorted(file for pattern in WEIGHT_FILES for file in folder.glob(pattern))
    if not files:
        raise _no_weights(model_name)
    base = adapter_base(model_name)
    digest = hashlib.sha256((weights_fingerprint(base) if base else "").encode())
    for file in [folder / ("adapter_config.json" if base else "config.json"), *files]:
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def _no_weights(model_name: str) -> ValueError:
    return ValueError(
        f"`{model_name}` has a config.json but no weights (*.safetensors): give a folder with weights,"
        " or set `weights: random` to start from scratch"
    )


@contextmanager
def no_progress_bar(local: bool) -> Iterator[None]:
    """Turn off transformers' progress bar for local files, which load quickly. Downloads keep theirs."""
    if not local or not transformers_logging.is_progress_bar_enabled():
        yield
        return
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.enable_progress_bar()
