"""Checks of the trainer's settings that Lightning takes as they come, and fails at later, or never."""

import re
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import AcceleratorRegistry, CPUAccelerator
from lightning.pytorch.strategies import FSDPStrategy, StrategyRegistry

from smollit.cli.words import nearest, shown

DURATION = re.compile(r"\d+:\d\d:\d\d:\d\d|.* days?, .*|\d+:\d\d:\d\d")  # the last two are a timedelta's
UNITS = {"weeks", "days", "hours", "minutes", "seconds"}


LEAST = {"accumulate_grad_batches": 1, "log_every_n_steps": 0, "check_val_every_n_epoch": 1, "num_nodes": 1}


def check_trainer_settings(settings: Mapping[str, Any]) -> None:
    """Refuse misspelt names and impossible numbers.

    Raises:
        ValueError: Names the setting, what was expected, and the nearest name.
    """
    for name, least in LEAST.items():
        if settings.get(name) is not None and settings[name] < least:
            raise ValueError(f"`trainer.{name}` must be at least {least}, got {settings[name]}")
    accelerators = ("auto", "gpu", *AcceleratorRegistry.available_accelerators())
    strategies = ("auto", "fsdp2", *StrategyRegistry.available_strategies())
    common = ("auto", "ddp", "fsdp", "fsdp2")
    _check(settings, "accelerator", accelerators)
    _check(settings, "strategy", strategies, common)
    _check(settings, "profiler", ("simple", "advanced", "pytorch", "xla"))
    devices = settings.get("devices")
    if isinstance(devices, str) and devices != "auto" and not re.fullmatch(r"-1|\d+(,\d*)*", devices):
        raise ValueError(f"`trainer.devices`: expected a number, a list of device numbers or auto, got {devices!r}")
    duration = settings.get("max_time")
    is_named = isinstance(duration, Mapping) and duration.keys() <= UNITS
    if duration is not None and not is_named and not DURATION.fullmatch(str(duration)):
        raise ValueError(
            "`trainer.max_time`: expected days, hours, minutes and seconds, DD:HH:MM:SS, or a mapping such as"
            f" {{hours: 2}}, got {duration!r}"
        )


def check_strategy(trainer: Trainer) -> None:
    """Refuse FSDP without a GPU, which torch does only when the model is wrapped.

    Raises:
        ValueError: Names strategies that run on a CPU.
    """
    if isinstance(trainer.strategy, FSDPStrategy) and isinstance(trainer.accelerator, CPUAccelerator):
        raise ValueError("`trainer.strategy`: fsdp needs a GPU, and this run has none: use fsdp2, ddp or auto")


def _check(settings: Mapping[str, Any], name: str, names: tuple[str, ...], listed: tuple[str, ...] = ()) -> None:
    value = settings.get(name)
    if isinstance(value, str) and value.lower() not in names:
        near = nearest(value, names)
        hint = f". Did you mean `{near}`?" if near else ""
        raise ValueError(f"`trainer.{name}`: expected one of {', '.join(listed or names)}, got {shown(value)}{hint}")
