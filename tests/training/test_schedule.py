"""Validation and learning rates count optimizer steps, whatever the accumulation and the epoch's length."""

from pathlib import Path
from typing import Any

import pytest

from smollit.training.steps import ValidateEverySteps


# case: cli-09
def test_validation_after_every_step(fit: Any, tmp_path: Path) -> None:
    """7 micro-batches, 4 accumulated: 2 steps per epoch, the second of 3; every step for 2 epochs: 1, 2, 3, 4."""
    run = fit(tmp_path, accumulate_grad_batches=4, max_epochs=2, val_every_n_steps=1)
    assert run.diary.validated == [1, 2, 3, 4]


# case: cli-09
@pytest.mark.parametrize(("every", "expected"), [(2, [2, 4, 6, 8]), (3, [3, 6, 8]), (5, [5, 8]), (100, [8])])
def test_validation_counts_steps_across_epochs_and_ends_with_the_last(
    fit: Any, tmp_path: Path, every: int, expected: list[int]
) -> None:
    """4 steps x 2 epochs = 8: the multiples, and the last step once."""
    assert fit(tmp_path, max_epochs=2, val_every_n_steps=every).diary.validated == expected


# case: cli-09
def test_validation_goes_on_counting_after_a_resume(fit: Any, tmp_path: Path) -> None:
    """Every 3 steps of 8, broken off after 4: 3, the end at 4, then 6 and 8."""
    first = fit(tmp_path, max_epochs=-1, max_steps=4, val_every_n_steps=3)
    second = fit(tmp_path, max_epochs=-1, max_steps=8, val_every_n_steps=3)
    assert first.diary.validated + second.diary.validated == [3, 4, 6, 8]


def test_interval_below_one_is_refused() -> None:
    """0 steps is no interval."""
    with pytest.raises(ValueError, match="val_every_n_steps` must be at least 1, got 0"):
        ValidateEverySteps(0)


# case: cli-01
@pytest.mark.parametrize("accumulate", [1, 2])
def test_warm_up_counts_optimizer_steps(fit: Any, tmp_path: Path, accumulate: int) -> None:
    """Warm-up 3 to a constant 1e-3: 0, 1/3, 2/3 and then 1 of it, step by step, not epoch by epoch."""
    model = {"schedule": "constant_with_warmup", "num_warmup_steps": 3}
    run = fit(tmp_path, accumulate_grad_batches=accumulate, max_epochs=-1, max_steps=4, model=model)
    assert [rate for _, _, rate in run.steps] == pytest.approx([0, 1e-3 / 3, 2e-3 / 3, 1e-3])


# case: cli-11
def test_max_steps_are_optimizer_steps(fit: Any, tmp_path: Path) -> None:
    """4 steps of 2 micro-batches of 2 rows, in an epoch of 13: 7 micro-batches, the last window is 1 batch of 1 row."""
    run = fit(tmp_path, max_epochs=-1, max_steps=4, data={"train_split": "train_sft[:12]", "train_batch_size": 1})
    assert run.trainer.global_step == 4
    assert len(run.diary.losses) == 8
