"""Schedules: the learning rate of an optimizer step, as a fraction of its peak. `model.schedule` selects one."""

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from smollit.choices import Choice, Settings


@dataclass(frozen=True, kw_only=True)
class Schedule(ABC):
    """A pure function of the step, the number of steps, and the number of warm-up steps. It has no state.

    A subclass is a frozen dataclass that adds its own arguments and `after_warmup`.
    """

    def fraction(self, step: int, num_steps: int, num_warmup_steps: int = 0) -> float:
        """Fraction of the peak at a step, counted from 0: (step + 1) / num_warmup_steps, then `after_warmup`."""
        if step < num_warmup_steps:
            return (step + 1) / num_warmup_steps
        return self.after_warmup(min(step, num_steps), num_steps, num_warmup_steps)

    @abstractmethod
    def after_warmup(self, step: int, num_steps: int, num_warmup_steps: int) -> float:
        """Fraction of the peak at a step from `num_warmup_steps` to `num_steps`, which is after the last one."""


@dataclass(frozen=True, kw_only=True)
class Constant(Schedule):
    """The peak, after the warm-up."""

    def after_warmup(self, step: int, num_steps: int, num_warmup_steps: int) -> float:
        """1."""
        return 1.0


@dataclass(frozen=True, kw_only=True)
class _Falling(Schedule, ABC):
    """Falls from the peak to a floor.

    Args:
        floor: Fraction of the peak that the learning rate falls to, from 0 to below 1.
    """

    floor: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.floor < 1:
            raise ValueError(f"`model.schedule.floor` must be at least 0 and below 1, got {self.floor}")

    def above_floor(self, fraction: float) -> float:
        """The floor at 0, and 1 at 1."""
        return self.floor + (1 - self.floor) * fraction


@dataclass(frozen=True, kw_only=True)
class Linear(_Falling):
    """Falls on a line: to the floor one step after the last."""

    def after_warmup(self, step: int, num_steps: int, num_warmup_steps: int) -> float:
        """(num_steps - step) / (num_steps - num_warmup_steps), above the floor."""
        return self.above_floor((num_steps - step) / max(1, num_steps - num_warmup_steps))


@dataclass(frozen=True, kw_only=True)
class Cosine(_Falling):
    """Falls on half a cosine, https://arxiv.org/abs/1608.03983: to the floor one step after the last."""

    def after_warmup(self, step: int, num_steps: int, num_warmup_steps: int) -> float:
        """(1 + cos(pi x)) / 2, above the floor, where x is the fraction of the steps after the warm-up."""
        done = (step - num_warmup_steps) / max(1, num_steps - num_warmup_steps)
        return self.above_floor(max(0.0, 0.5 * (1 + math.cos(math.pi * done))))


@dataclass(frozen=True, kw_only=True)
class WSD(_Falling):
    """Warm-up, stable, decay: the peak, and a fall in the last steps, https://arxiv.org/abs/2404.06395.

    Args:
        decay_ratio: Fraction of all steps over which the learning rate falls at the end.
        shape: `linear`, or `sqrt` for 1 - sqrt(x), https://arxiv.org/abs/2405.18392.
    """

    decay_ratio: float = 0.1
    shape: Literal["linear", "sqrt"] = "linear"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.decay_ratio <= 1:
            raise ValueError(f"`model.schedule.decay_ratio` must be above 0 and at most 1, got {self.decay_ratio}")

    def after_warmup(self, step: int, num_steps: int, num_warmup_steps: int) -> float:
        """1, then 1 - x or 1 - sqrt(x), above the floor, where x is the fraction of the decay that is done."""
        num_decay = min(math.ceil(num_steps * self.decay_ratio), num_steps - num_warmup_steps)
        done = max(0.0, 1 - (num_steps - step) / max(1, num_decay))
        return self.above_floor(1 - (math.sqrt(done) if self.shape == "sqrt" else done))


@dataclass(frozen=True, kw_only=True)
class InverseSqrt(Schedule):
    """Falls with the root of the step, as after the warm-up of https://arxiv.org/abs/1706.03762.

    Args:
        timescale: Steps after the warm-up in which the learning rate falls to 1 / sqrt(2); null takes the number of
            warm-up steps, or 10,000 without a warm-up.
    """

    timescale: int | None = None

    def __post_init__(self) -> None:
        if self.timescale is not None and self.timescale < 1:
            raise ValueError(f"`model.schedule.timescale` must be at least 1, got {self.timescale}")

    def after_warmup(self, step: int, num_steps: int, num_warmup_steps: int) -> float:
        """1 / sqrt(1 + k / timescale) in step k after the warm-up."""
        timescale = self.timescale or num_warmup_steps or 10_000
        return 1 / math.sqrt((step - num_warmup_steps + timescale) / timescale)


SCHEDULE = Choice(
    setting="model.schedule",
    families=(Schedule,),
    shipped=sys.modules[__name__],
    aliases={"constant_with_warmup": "Constant", "inverse_sqrt": "InverseSqrt"},
    foreign=(LRScheduler, ReduceLROnPlateau),
)


def upgraded_schedule(config: Mapping[str, Any]) -> Settings:
    """A run's settings in a checkpoint, {"model": {"init_args": ...}, ...}, with a schedule that is a name in full."""
    model = config.get("model")
    named = model.get("init_args", {}).get("schedule") if isinstance(model, Mapping) else None
    if model is None or not isinstance(named, str):
        return dict(config)
    full = SCHEDULE.as_settings(SCHEDULE.make(named))
    return {**config, "model": {**model, "init_args": model["init_args"] | {"schedule": full}}}
