"""The policy's weights out of a Lightning checkpoint, of whatever shape."""

from pathlib import Path

import torch
from lightning.fabric.utilities.load import _load_distributed_checkpoint
from torch import Tensor, nn


def load_weights(model: nn.Module, path: Path, model_name: str) -> None:
    """Give a CausalLM, built from `model_name`, the weights of a checkpoint's policy.

    Raises:
        ValueError: If the checkpoint can't be read, holds no policy, or was made from another model.
    """
    try:
        model.load_state_dict(policy_weights(path))
    except RuntimeError as error:  # names or shapes that do not fit
        first = next(line.strip() for line in str(error).splitlines()[1:] if line.strip())
        raise ValueError(f"{path} was not made from `model.model_name` {model_name}: {first}") from error


def policy_weights(path: Path) -> dict[str, Tensor]:
    """The policy's weights in a Lightning checkpoint file, or in a folder of shards.

    Raises:
        ValueError: If it can't be read, or holds no policy.
    """
    try:
        if path.is_dir():
            checkpoint = _load_distributed_checkpoint(path)
        else:
            checkpoint = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    except Exception as error:
        raise ValueError(f"{path} can't be read as a checkpoint: {error}") from error
    state = checkpoint.get("state_dict", checkpoint)
    weights = {name.removeprefix("policy."): value for name, value in state.items() if name.startswith("policy.")}
    if not weights:
        raise ValueError(f"{path} holds no policy: give a checkpoint that `smollit fit` wrote")
    return weights
