"""The policy's weights from a Lightning checkpoint: one file, or a folder of shards."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint import FileSystemReader, load
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

POLICY = "policy."  # prefix of the policy's parameters in the LightningModule


def load_weights(model: nn.Module, path: Path, model_name: str) -> None:
    """Load the weights of a checkpoint's policy into a CausalLM that was built from `model_name`.

    Raises:
        ValueError: If the checkpoint can't be read, holds no policy, or was made from another model.
    """
    try:
        model.load_state_dict(policy_weights(path))
    except RuntimeError as error:  # names or shapes that do not match
        first = next(line.strip() for line in str(error).splitlines()[1:] if line.strip())
        raise ValueError(f"{path} was not made from `model.model_name` {model_name}: {first}") from error


def policy_weights(path: Path) -> dict[str, Tensor]:
    """The policy's weights in a checkpoint file or a folder of shards.

    Raises:
        ValueError: If it can't be read, or holds no policy.
    """
    try:
        if path.is_dir():
            state = _read_shards(path)
        else:
            state = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
            state = state.get("state_dict", state)
    except Exception as error:
        raise ValueError(f"{path} can't be read as a checkpoint: {error}") from error
    weights = {name.removeprefix(POLICY): value for name, value in state.items() if name.startswith(POLICY)}
    if not weights:
        raise ValueError(f"{path} holds no policy: give a checkpoint that `smollit fit` wrote")
    return weights


def _read_shards(folder: Path) -> dict[str, Tensor]:
    """The policy's full weights alone, from a folder that torch.distributed.checkpoint wrote."""
    found = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in FileSystemReader(folder).read_metadata().state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata) and _parameter(name).startswith(POLICY)
    }
    if found:
        load(found, checkpoint_id=folder, no_dist=True)
    return {_parameter(name): value for name, value in found.items()}


def _parameter(name: str) -> str:
    """The parameter's name in the module: Lightning stores the weights under `state_dict` (FSDP2) or `model` (FSDP)."""
    return name.removeprefix("state_dict.").removeprefix("model.")
