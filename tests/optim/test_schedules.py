"""Schedules and warm-up: fractions of the peak, by hand and by transformers; what they refuse."""

import math
from typing import Any

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR
from transformers import get_scheduler

from smollit.modules import SFTModule
from smollit.optim.rates import LearningRates
from smollit.schedules import WSD, Constant, Cosine, InverseSqrt, Linear, Schedule


# case: C1
@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Linear(), [1, 0.75, 0.5, 0.25]),
        (Linear(floor=0.2), [1, 0.8, 0.6, 0.4]),
        (Cosine(), [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]),
        (Cosine(floor=0.1), [1, 0.1 + 0.45 * (1 + math.sqrt(0.5)), 0.55, 0.1 + 0.45 * (1 - math.sqrt(0.5))]),
        (Constant(), [1, 1, 1, 1]),
        (WSD(decay_ratio=0.25), [1, 1, 1, 0.5]),  # 2 of the 8 steps
        (WSD(decay_ratio=0.25, shape="sqrt", floor=0.5), [1, 1, 1, 1 - 0.5 * math.sqrt(0.5)]),
        (InverseSqrt(), [1, math.sqrt(4 / 5), math.sqrt(4 / 6), math.sqrt(4 / 7)]),  # of the 4 warm-up steps
        (InverseSqrt(timescale=1), [1, math.sqrt(1 / 2), math.sqrt(1 / 3), 1 / 2]),
    ],
    ids=str,
)
def test_four_of_eight_steps_warm_up(schedule: Schedule, expected: list[float]) -> None:
    """1/4, 2/4, 3/4 and the peak, then the schedule over the other 4 steps."""
    fractions = [schedule.fraction(step, 8, 4) for step in range(8)]
    assert fractions == pytest.approx([0.25, 0.5, 0.75, 1, *expected])


# promise: schedules
@pytest.mark.parametrize(("schedule", "name"), [(Linear(), "linear"), (Cosine(), "cosine"), (Constant(), "constant")])
@pytest.mark.parametrize("warmup", [0, 7])
def test_the_rates_after_the_warm_up_are_those_of_transformers_to_the_bit(
    schedule: Schedule, name: str, warmup: int
) -> None:
    """So a run of an earlier version that is past its warm-up resumes with the same rates."""
    other = get_scheduler(name, SGD([torch.zeros(1)], lr=1.0), num_warmup_steps=warmup, num_training_steps=45)
    for step in range(46):
        if step >= warmup:
            assert schedule.fraction(step, 45, warmup) == other.get_last_lr()[0]
        other.optimizer.step()
        other.step()


@pytest.mark.parametrize(("ratio", "expected"), [(0.25, 2), (0.3, 3), (0.0, 0)])
def test_a_ratio_is_rounded_up(ratio: float, expected: int) -> None:
    """Of 8 steps: 2, 2.4 -> 3, and none."""
    rates = LearningRates(Linear(), 0, ratio)
    rates.set_steps(8)
    assert rates.num_warmup_steps == expected


# case: C1
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_warmup_steps": -1}, "num_warmup_steps` must be at least 0"),
        ({"warmup_ratio": 1.0}, "warmup_ratio` must be at least 0 and below 1"),
        ({"num_warmup_steps": 2, "warmup_ratio": 0.1}, "set only one of them"),
        ({"num_warmup_steps": 2, "schedule": OneCycleLR}, "have no effect on a scheduler of torch"),
        ({"schedule": "sometimes"}, "expected one of Constant, Cosine, InverseSqrt, Linear, WSD"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": math.inf}, "learning_rate` must be greater than 0 and finite"),
        ({"learning_rate": math.nan}, "learning_rate` must be greater than 0 and finite"),
        ({"learning_rate_factors": {"embed": 0.0}}, "learning_rate_factors` of 'embed'"),
        ({"learning_rate_factors": {"embed[": 0.1}}, r"'embed\[' is no regular expression: unterminated"),
    ],
)
def test_settings_without_a_meaning_are_refused_by_name(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        SFTModule("anything", **options)


@pytest.mark.parametrize("arguments", [{"floor": 1.0}, {"floor": math.nan}, {"decay_ratio": 0.0}])
def test_arguments_of_schedules_are_checked(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=rf"`model.schedule.{next(iter(arguments))}` must be"):
        WSD(**arguments)
