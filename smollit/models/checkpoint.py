"""Lightning checkpoints, one file or a folder of shards: read without executing code, and verified."""

import pickle
from collections import Counter, OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from smollit.errors import first_line
from smollit.models.adapters import quantized_layers, tuners
from smollit.models.shards import EXTRAS, read_shards, verify_shards, verify_zip

POLICY = "policy."  # prefix of the policy's parameters in the LightningModule
# What torch reads without executing code, besides tensors.
MAPPINGS, SEQUENCES = (dict, OrderedDict, Counter), (list, tuple, set)
LEAVES = (type(None), bool, int, float, complex, str, bytes, bytearray, torch.Size, torch.dtype, torch.device)


def is_value(value: object) -> bool:
    """Whether a value in a checkpoint can be read without executing code: it holds no objects of other classes."""
    if isinstance(value, MAPPINGS) and type(value) in MAPPINGS:
        return all(map(is_value, [*value.keys(), *value.values()]))
    if isinstance(value, SEQUENCES) and type(value) in SEQUENCES:
        return all(map(is_value, value))
    return isinstance(value, Tensor) or type(value) in LEAVES


def load_weights(model: nn.Module, path: Path, model_name: str) -> None:
    """Load the weights of a checkpoint's policy into a CausalLM that was built from `model_name`.

    Raises:
        ValueError: If the checkpoint can't be read, holds no policy, or was made from another model.
    """
    weights = policy_weights(path)
    try:
        model.load_state_dict(frozen_weights(model) | weights)
    except RuntimeError as error:  # names or shapes that do not match
        first = next(line.strip() for line in str(error).splitlines()[1:] if line.strip())
        raise ValueError(f"{path} was not made from `model.model_name` {model_name}: {first}") from error


def trained_weights(model: nn.Module, state: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """The entries of a state dict that training changes.

    Args:
        model: The model, with an adapter.
        state: Its state, and perhaps that of others.
        prefix: Prefix of the model's names in `state`.
    """
    frozen = {f"{prefix}{name}" for name, parameter in model.named_parameters() if not parameter.requires_grad}
    buffers = {f"{prefix}{name}" for name, _ in model.named_buffers()}
    tied = {f"{prefix}{name}" for name in model.state_dict()} - {f"{prefix}{n}" for n, _ in model.named_parameters()}
    return {name: value for name, value in state.items() if name not in frozen | buffers | tied}


def frozen_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights around an adapter, which checkpoints do not hold; none without one."""
    if not tuners(model):
        return {}
    state = model.state_dict()
    trained = trained_weights(model, state)
    # The scales of weights in 4 bits are in the state too, and can't be loaded.
    scales = tuple(f"{name}.weight." for name, _ in quantized_layers(model))
    return {name: value for name, value in state.items() if name not in trained and not name.startswith(scales)}


def policy_weights(path: Path) -> dict[str, Tensor]:
    """The policy's weights in a checkpoint file or a folder of shards.

    Raises:
        ValueError: If it can't be read, or holds no policy.
    """
    try:
        verify(path)
        state: dict[str, Any] = read_shards(path, POLICY) if path.is_dir() else read(path)
    except Exception as error:
        raise ValueError(f"{path} can't be read as a checkpoint: {first_line(error)}") from error
    state = state.get("state_dict", state)
    weights = {name.removeprefix(POLICY): value for name, value in state.items() if name.startswith(POLICY)}
    if not weights:
        raise ValueError(f"{path} holds no policy: give a checkpoint that `smollit fit` wrote")
    return weights


def read(path: Path) -> dict[str, Any]:
    """The contents of a checkpoint, with its tensors left on the disk; of a folder, all but what is sharded.

    Raises:
        Exception: If it can't be read: torch raises a dozen types for files that are truncated or of another kind.
    """
    file = path / EXTRAS if path.is_dir() else path
    if path.is_dir() and not file.exists():  # torch wrote it, and Lightning did not
        return {}
    verify_zip(file, values_only=True)
    try:
        checkpoint = torch.load(file, weights_only=True, map_location="cpu", mmap=True)
    except pickle.UnpicklingError as error:  # with long advice, to load the file in a way that executes code
        _, _, reason = str(error).rpartition("WeightsUnpickler error: ")
        raise ValueError(f"it holds more than values: {reason.strip().splitlines()[0].partition('. ')[0]}") from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f"it holds a {type(checkpoint).__name__}")
    return checkpoint


def verify(path: Path) -> None:
    """Read a checkpoint once, and compare it with its checksums.

    Raises:
        Exception: If it is damaged: of many types, as of `read`.
    """
    if path.is_dir():
        verify_shards(path)
    else:
        verify_zip(path)
