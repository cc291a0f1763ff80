"""The learning rate of each optimizer step: warm-up, schedule, and what a run is set to when it starts or resumes."""

import logging
import math
import warnings
from dataclasses import asdict
from typing import Protocol, runtime_checkable

from lightning.pytorch.cli import LRSchedulerCallable
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from smollit.choices import defaults
from smollit.optim.shared import Shared
from smollit.schedules import SCHEDULE, Constant, Schedule

log = logging.getLogger(__name__)


@runtime_checkable
class BaseRates(Protocol):
    """A scheduler that computes each group's rate from a base rate: torch's, except ReduceLROnPlateau."""

    base_lrs: list[float | Tensor]


class LearningRates:
    """A schedule over the steps of a run.

    Args:
        schedule: One of smollit's schedules, its name or settings, or a function that makes a scheduler of torch.
        num_warmup_steps: `model.num_warmup_steps`.
        warmup_ratio: `model.warmup_ratio`.
    """

    def __init__(self, schedule: Schedule | LRSchedulerCallable, num_warmup_steps: int, warmup_ratio: float) -> None:
        if num_warmup_steps < 0:
            raise ValueError(f"`model.num_warmup_steps` must be at least 0, got {num_warmup_steps}")
        if not 0 <= warmup_ratio < 1:
            raise ValueError(f"`model.warmup_ratio` must be at least 0 and below 1, got {warmup_ratio}")
        if num_warmup_steps and warmup_ratio:
            raise ValueError("`model.num_warmup_steps` and `model.warmup_ratio` say the same: set only one of them")
        made = SCHEDULE.make(schedule)
        self.schedule: Schedule | LRSchedulerCallable = made if isinstance(made, Schedule) else Shared(made)
        if (num_warmup_steps or warmup_ratio) and not isinstance(self.schedule, Schedule):
            raise ValueError(
                "`model.num_warmup_steps` and `model.warmup_ratio` have no effect on a scheduler of torch: take a"
                " schedule of smollit.schedules, or a scheduler that warms up by itself"
            )
        self.configured = (num_warmup_steps, warmup_ratio)
        self.sets_its_own_rates = False  # a scheduler of torch that does not multiply the peak
        self.num_steps: float = 0
        self.num_warmup_steps = 0

    def set_steps(self, num_steps: float) -> None:
        """Set the optimizer steps of the whole run, infinite if only time limits it.

        Raises:
            ValueError: If the warm-up takes the whole run or more.
        """
        steps, ratio = self.configured
        if ratio and math.isinf(num_steps):
            raise ValueError("`model.warmup_ratio` needs a number of steps: set `trainer.max_steps`, or `max_epochs`")
        warmup = math.ceil(ratio * num_steps) if ratio else steps
        if 0 < num_steps <= warmup:
            name, value = ("warmup_ratio", ratio) if ratio else ("num_warmup_steps", steps)
            raise ValueError(
                f"`model.{name}` is {value}, and the run has {int(num_steps):,} optimizer steps: the warm-up would take"
                " all of it. Set a smaller one"
            )
        self.num_steps, self.num_warmup_steps = num_steps, warmup

    def refuse_warming_up(self, step: int) -> None:
        """Refuse to resume a run whose warm-up began at a rate of 0, as before version 0.3, while it warms up.

        Raises:
            ValueError: If the step is in the warm-up. After it, the rates are the same.
        """
        if step < self.configured[0]:
            raise ValueError(
                f"this run was stopped at step {step} of {self.configured[0]} warm-up steps, by a version whose warm-up"
                " began at a rate of 0, and now begins at 1 / `num_warmup_steps`: its rates would jump. Start a new"
                " run, or set `trainer.force_resume: true`"
            )

    def fraction(self, step: int) -> float:
        """Fraction of the peak at an optimizer step, counted from 0."""
        assert isinstance(self.schedule, Schedule)
        if math.isinf(self.num_steps):
            return Constant().fraction(step, step + 1, self.num_warmup_steps)
        return self.schedule.fraction(step, int(self.num_steps), self.num_warmup_steps)

    def scheduler(self, optimizer: Optimizer) -> LRScheduler:
        """A scheduler of torch, to be stepped after each optimizer step."""
        if isinstance(self.schedule, Schedule):
            return LambdaLR(optimizer, lambda step: self.fraction(step))
        peaks = [group["lr"] for group in optimizer.param_groups]
        scheduler = self.schedule(optimizer)
        if isinstance(scheduler, ReduceLROnPlateau) or not isinstance(scheduler, LRScheduler):
            raise ValueError(
                f"`model.schedule` is {type(scheduler).__name__}, which needs a metric: take one that counts steps"
            )
        self.sets_its_own_rates = any(
            group["initial_lr"] != peak for group, peak in zip(optimizer.param_groups, peaks, strict=True)
        )
        if self.sets_its_own_rates:  # OneCycleLR, CyclicLR
            log.warning("%s sets its own rates: `model.learning_rate` has no effect", type(scheduler).__name__)
        return scheduler

    def start(self, scheduler: LRScheduler, peaks: list[float]) -> None:
        """Set each group's learning rate for the next step to that of its peak.

        A restored scheduler has the peak and the number of steps of the run that was saved, and a learning rate finder
        sets the rate of one step only.
        """
        if not isinstance(self.schedule, Schedule) and scheduler.last_epoch > 0:
            self._start_again(scheduler, peaks)
            return
        if self.sets_its_own_rates:
            return
        groups = scheduler.optimizer.param_groups
        for group, last, peak in zip(groups, scheduler.get_last_lr(), peaks, strict=True):
            if isinstance(self.schedule, Schedule):
                group["lr"] = peak * self.fraction(scheduler.last_epoch)
            else:
                group["lr"] = last * (peak / group["initial_lr"])
            group["initial_lr"] = peak
        if isinstance(scheduler, BaseRates):
            scheduler.base_lrs = list(peaks)

    def _start_again(self, scheduler: LRScheduler, peaks: list[float]) -> None:
        """Let a scheduler of torch make the steps that are done again, with the arguments that it has now.

        Its saved state holds those that it had. With the same arguments, this ends in the same state.
        """
        assert not isinstance(self.schedule, Schedule)
        for group, peak in zip(scheduler.optimizer.param_groups, peaks, strict=True):
            group["lr"] = group["initial_lr"] = peak
        fresh = self.schedule(scheduler.optimizer)
        assert isinstance(fresh, LRScheduler)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            for _ in range(scheduler.last_epoch):
                fresh.step()
        scheduler.load_state_dict(fresh.state_dict())

    def describe(self) -> str:
        """`Cosine (floor 0.1), 30 warm-up steps`."""
        if not isinstance(self.schedule, Schedule):
            return "a scheduler of torch"
        schedule = Constant() if math.isinf(self.num_steps) else self.schedule
        changed = {name: value for name, value in asdict(schedule).items() if value != defaults(schedule)[name]}
        arguments = ", ".join(f"{name} {value}" for name, value in changed.items())
        name = f"{type(schedule).__name__}{f' ({arguments})' if arguments else ''}"
        if math.isinf(self.num_steps) and schedule != self.schedule:
            name = f"{name}, since the number of steps is unknown"
        return f"{name}, {self.num_warmup_steps} warm-up steps"
