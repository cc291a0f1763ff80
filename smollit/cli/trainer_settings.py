"""Checks of the trainer's settings that Lightning takes as they come, and fails at later, or never."""

import inspect
import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import AcceleratorRegistry, CPUAccelerator, CUDAAccelerator, MPSAccelerator
from lightning.pytorch.strategies import FSDPStrategy, StrategyRegistry

from smollit.cli.wording.words import nearest, shown
from smollit.training import SmollitTrainer

DURATION = re.compile(r"\d+:\d\d:\d\d:\d\d")
UNITS = {"weeks", "days", "hours", "minutes", "seconds"}
LEAST = {"accumulate_grad_batches": 1, "log_every_n_steps": 0, "check_val_every_n_epoch": 1, "num_nodes": 1}
KEPT = inspect.signature(SmollitTrainer).parameters["keep_checkpoints"].default
GPUS = {"gpu": (CUDAAccelerator, MPSAccelerator), "cuda": (CUDAAccelerator,), "mps": (MPSAccelerator,)}


def check_trainer_settings(settings: Mapping[str, Any]) -> None:
    """Refuse misspelt names and impossible numbers.

    Raises:
        ValueError: Names the setting, what was expected, and the nearest name.
    """
    _check_effects(settings)
    for name, least in LEAST.items():
        if settings.get(name) is not None and settings[name] < least:
            raise ValueError(f"`trainer.{name}` must be at least {least}, got {settings[name]}")
    accelerators = ("auto", "gpu", *AcceleratorRegistry.available_accelerators())
    strategies = ("auto", "fsdp2", *StrategyRegistry.available_strategies())
    common = ("auto", "ddp", "fsdp", "fsdp2")
    _check(settings, "accelerator", accelerators)
    _check(settings, "strategy", strategies, common)
    if settings.get("strategy") == "fsdp2" and str(settings.get("precision")) in ("16-mixed", "16"):
        raise ValueError(
            "`trainer.precision`: fsdp2 can't scale the fp16 gradients of 16-mixed: use bf16-mixed, or the strategy"
            " fsdp"
        )
    _check(settings, "profiler", ("simple", "advanced", "pytorch", "xla"))
    devices = settings.get("devices")
    if isinstance(devices, str) and devices != "auto" and not re.fullmatch(r"-1|\d+(,\d*)*", devices):
        raise ValueError(f"`trainer.devices`: expected a number, a list of device numbers or auto, got {devices!r}")
    if settings.get("limit_train_batches") == 0:  # also 0.0
        raise ValueError(
            "`trainer.limit_train_batches` is 0: no step would be trained: set 1 or more, or run `validate`"
        )
    interval = settings.get("val_check_interval")
    if isinstance(interval, int | float) and interval <= 0:
        raise ValueError(
            f"`trainer.val_check_interval` must be above 0, got {interval}; to never validate, set"
            " `trainer.limit_val_batches: 0`"
        )
    duration = settings.get("max_time")
    is_named = isinstance(duration, timedelta) or (isinstance(duration, Mapping) and duration.keys() <= UNITS)
    if duration is not None and not is_named and not DURATION.fullmatch(str(duration)):
        raise ValueError(
            "`trainer.max_time`: expected days, hours, minutes and seconds, DD:HH:MM:SS, or a mapping such as"
            f" {{hours: 2}}, got {duration!r}"
        )


def check_accelerator(name: str) -> None:
    """Refuse a kind of GPU that this machine does not have.

    Raises:
        ValueError: Names what is left.
    """
    if name in GPUS and not any(known.is_available() for known in GPUS[name]):
        raise ValueError(f"`trainer.accelerator`: there is no {name} on this machine: set it to cpu or auto")


def check_device(trainer: Trainer) -> None:
    """Refuse FSDP without a GPU and fp64 on Apple's, which torch does only when the model is wrapped or moved.

    Raises:
        ValueError: Names strategies and precisions that work there.
    """
    if isinstance(trainer.accelerator, MPSAccelerator) and trainer.precision == "64-true":
        raise ValueError("`trainer.precision`: Apple's GPUs have no 64-true: set it to 32-true")
    if isinstance(trainer.strategy, FSDPStrategy) and isinstance(trainer.accelerator, CPUAccelerator):
        raise ValueError("`trainer.strategy`: fsdp needs a GPU, and this run has none: use fsdp2, ddp or auto")


def _check_effects(settings: Mapping[str, Any]) -> None:
    """Refuse settings that another one leaves without effect."""
    saves = settings.get("checkpoint_every_n_steps") is not None
    can_save = settings.get("enable_checkpointing") is not False
    most = settings.get("max_steps", -1)
    clips = (settings.get("gradient_clip_val") or 0) > 0
    without_effect = {
        "`trainer.checkpoint_every_n_steps` has no effect with `enable_checkpointing: false`": saves and not can_save,
        "`trainer.keep_best` has no effect with `enable_checkpointing: false`": (
            settings.get("keep_best") is not None and not can_save
        ),
        "`trainer.keep_checkpoints` has no effect without `checkpoint_every_n_steps`": (
            settings.get("keep_checkpoints", KEPT) != KEPT and not saves
        ),
        "`trainer.gradient_clip_algorithm` has no effect without `gradient_clip_val`": (
            settings.get("gradient_clip_algorithm") is not None and not clips
        ),
        "`trainer.min_steps` has no effect above `max_steps`": -1 < most < (settings.get("min_steps") or 0),
        "`trainer.check_val_every_n_epoch` has no effect with `val_every_n_steps`": (
            settings.get("check_val_every_n_epoch") not in (None, 1) and settings.get("val_every_n_steps") is not None
        ),
    }
    for said, holds in without_effect.items():
        if holds:
            raise ValueError(f"{said}: set both or none" if "without" in said else f"{said}: set only one of them")


def _check(settings: Mapping[str, Any], name: str, names: tuple[str, ...], listed: tuple[str, ...] = ()) -> None:
    value = settings.get(name)
    if isinstance(value, str) and value.lower() not in names:
        near = nearest(value, names)
        hint = f". Did you mean `{near}`?" if near else ""
        raise ValueError(f"`trainer.{name}`: expected one of {', '.join(listed or names)}, got {shown(value)}{hint}")
