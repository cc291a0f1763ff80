"""What every rank has of its own: its random state, its pending sums; gathered as plain values."""

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

State = dict[str, Any]


def over_ranks(sums: dict[str, Tensor]) -> dict[str, list[float]]:
    """Sums over all ranks, as plain numbers."""
    ranks = all_ranks({name: pair.tolist() for name, pair in sums.items()})
    return {name: [sum(rank[name][index] for rank in ranks) for index in (0, 1)] for name in sums}


def get_random_state() -> State:
    """Random state of torch (CPU and this process's GPU), numpy and Python, as plain numbers and tensors."""
    version, keys, gauss = random.getstate()
    name, numpy_keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    cuda = [torch.cuda.get_rng_state()] if torch.cuda.is_available() else []
    return {
        "torch": torch.get_rng_state(),
        "cuda": cuda,
        "mps": [torch.mps.get_rng_state()] if torch.backends.mps.is_available() else [],
        "python": [version, list(keys), gauss],
        "numpy": [
            name,
            torch.from_numpy(np.asarray(numpy_keys, dtype=np.int64)),
            int(position),
            int(has_gauss),
            float(cached),
        ],
    }


def set_random_state(state: State) -> None:
    """Restore what `get_random_state` returned."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"][0])
    if state.get("mps") and torch.backends.mps.is_available():  # version 0.2 did not save it
        torch.mps.set_rng_state(state["mps"][0])
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    name, numpy_keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, numpy_keys.numpy().astype(np.uint32), position, has_gauss, cached))


def all_ranks(value: State) -> list[State]:
    """The values of all ranks, in their order."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, value)
    return gathered
