"""A model that a script holds in memory: written once as a folder, so that it is a model like all others."""

import hashlib
import json
import os
import shutil
import tempfile
from contextlib import suppress
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Union

import torch
from transformers import AutoTokenizer, PreTrainedModel

from smollit.models.adapters import Adapter, DoRA, LoRA, Peft, RSLoRA, tuners
from smollit.paths import cache_folder

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

InMemory: TypeAlias = Union[str, Path, PreTrainedModel, "PeftModel"]
# Arguments of peft's configurations that say nothing of the layers.
NOT_OF_LAYERS = ("peft_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode")


def on_disk(model: InMemory, *, may_be_frozen: bool) -> str:
    """What `model_name` means: a name as it is, and a model in memory as the folder of a copy in the cache.

    The folder depends on the weights alone: a run resumes on it, and checkpoints and exports say where they come from.

    Args:
        model: A name, a folder, or a model of transformers or peft.
        may_be_frozen: Whether its weights need not be trainable: those of a reference, or below an adapter.

    Raises:
        ValueError: If it is neither a name nor a model, or a model of which only a part is to be trained.
    """
    if isinstance(model, str | Path):
        return str(model)
    whole = _merged(model) if _is_peft(model) else model
    if not isinstance(whole, PreTrainedModel):
        raise ValueError(
            "`model.model_name` must be a name, a folder, or a model of transformers or peft, got a"
            f" {type(model).__name__}"
        )
    if tuners(whole):
        raise ValueError("a model with an adapter inside is given as a peft.PeftModel: use peft.get_peft_model")
    if whole is model and not may_be_frozen and not all(weight.requires_grad for weight in whole.parameters()):
        raise ValueError(
            "the model in memory has frozen weights, and smollit trains all of them or an adapter: set `model.adapter`,"
            " or call `model.requires_grad_(True)`"
        )
    folder = cache_folder() / "models" / _digest(whole)
    if not folder.is_dir():
        _write(whole, folder)
    if whole.name_or_path and not (folder / "tokenizer_config.json").is_file():
        with suppress(OSError, ValueError):  # it may be gone: then `data.tokenizer_name` must say which
            AutoTokenizer.from_pretrained(whole.name_or_path, trust_remote_code=False).save_pretrained(folder)
    return str(folder)


def adapter_of(model: InMemory) -> Adapter | None:
    """The adapter that a peft model is to train; None for any other model, and for one whose adapter is frozen.

    Raises:
        ValueError: If it is of a kind that smollit can't train.
    """
    if isinstance(model, str | Path) or not _is_peft(model):
        return None
    if not any(weight.requires_grad for weight in model.parameters()):
        return None
    return _as_adapter(model.peft_config[model.active_adapter])  # type: ignore[union-attr, index, arg-type]  # a PeftModel's


def _as_adapter(config: "PeftConfig") -> Adapter:
    """LoRA, RSLoRA or DoRA where these have all of its options, else Peft with all of them."""
    from peft import LoraConfig

    if config.is_prompt_learning:
        raise ValueError(
            f"the peft model has a {type(config).__name__}, which adds to the prompt, and smollit trains adapters"
            " inside of layers: set `model.adapter`"
        )
    if isinstance(config, LoraConfig):
        kind = DoRA if config.use_dora else RSLoRA if config.use_rslora else LoRA
        targets = sorted(config.target_modules) if isinstance(config.target_modules, set | list) else None
        plain = kind(r=config.r, alpha=float(config.lora_alpha), dropout=config.lora_dropout, targets=targets)
        if (type(config), _options(config)) == (LoraConfig, _options(plain.peft_config())):
            return plain
    found = Peft(config=f"{type(config).__module__}.{type(config).__name__}", options=_options(config))
    found.peft_config()  # refuses what it can't train
    return found


def _options(config: "PeftConfig") -> dict[str, Any]:
    """The arguments that differ from their defaults, without those that say where the adapter comes from."""
    given = config.to_dict().items()
    own = {
        name: value for name, value in given if name not in NOT_OF_LAYERS and value != getattr(type(config), name, {})
    }
    lists = {name: sorted(value) if isinstance(value, set) else value for name, value in own.items()}
    return lists | {"task_type": "CAUSAL_LM"}


def _is_peft(model: object) -> bool:
    if find_spec("peft") is None:
        return False
    from peft import PeftModel

    return isinstance(model, PeftModel)


def _merged(model: object) -> object:
    """A copy of the model below, with the adapter added to its weights."""
    return deepcopy(model).merge_and_unload()  # type: ignore[attr-defined]  # a PeftModel


def _digest(model: PreTrainedModel) -> str:
    """SHA-256 of configuration and weights, in short."""
    digest = hashlib.sha256(json.dumps(model.config.to_diff_dict(), default=str, sort_keys=True).encode())
    for name, weight in model.state_dict().items():
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _write(model: PreTrainedModel, folder: Path) -> None:
    """Write the model; of several processes, the first one wins."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        model.save_pretrained(temporary)
        with suppress(OSError):  # another process was faster, with the same weights
            os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
