"""The policy's weights out of a Lightning checkpoint, of whatever shape."""

from pathlib import Path

import torch
from lightning.fabric.utilities.load import _load_distributed_checkpoint
from torch import Tensor


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
