"""Options of the trainer: `fsdp` and `fsdp2` by name, and defaults from the environment."""

import inspect
import os
from ast import literal_eval
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy, Strategy
from torch.distributed.fsdp import MixedPrecision


class ShardedStrategy(FSDPStrategy):
    """FSDP with unsharded checkpoints, and gradients reduced in fp32: a sum of many small terms."""

    strategy_name = "fsdp"

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"state_dict_type": "full", **options})

    @property
    def mixed_precision_config(self) -> MixedPrecision | None:
        """The trainer's precision, but sums over ranks and rotary frequencies in fp32."""
        config = super().mixed_precision_config
        return replace(config, reduce_dtype=torch.float32, buffer_dtype=torch.float32) if config else None


class Sharded2Strategy(ModelParallelStrategy):
    """FSDP2 over all processes: data parallel, with unsharded checkpoints. Runs on the CPU too."""

    strategy_name = "fsdp2"

    def __init__(self, **options: Any) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False, **options)

    def setup_environment(self) -> None:
        """One data-parallel mesh over all processes; Lightning's default is tensor parallelism inside a node."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


BY_NAME: dict[str, type[Strategy]] = {"fsdp": ShardedStrategy, "fsdp2": Sharded2Strategy}


def by_name(strategy: str | Strategy) -> str | Strategy:
    """smollit's strategy for `fsdp` and `fsdp2`; anything else unchanged, for Lightning's registry."""
    return BY_NAME[strategy]() if isinstance(strategy, str) and strategy in BY_NAME else strategy


def from_environment() -> dict[str, Any]:
    """Trainer's arguments from PL_TRAINER_<ARGUMENT>: Lightning looks for the name of the class, which is ours."""
    found: dict[str, Any] = {}
    for name in inspect.signature(Trainer).parameters:
        value = os.environ.get(f"PL_TRAINER_{name.upper()}")
        if value:
            found[name] = value
            with suppress(ValueError, SyntaxError):
                found[name] = literal_eval(value)
    return found
