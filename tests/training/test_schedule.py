"""Validation and learning rates count optimizer steps, whatever the accumulation and the epoch's length."""

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, Trainer


# case: cli-09
@pytest.mark.parametrize(
    ("accumulate", "every", "expected"),
    [(2, 2, [2, 4, 6, 8]), (2, 3, [3, 6, 8]), (2, 5, [5, 8]), (2, 100, [8]), (4, 1, [1, 2, 3, 4])],
)
def test_validation_counts_steps_across_epochs_and_ends_with_the_last(
    fit: Any, tmp_path: Path, accumulate: int, every: int, expected: list[int]
) -> None:
    """7 micro-batches, 2 or 4 accumulated: 4 or 2 steps x 2 epochs; the multiples, and the last step once."""
    run = fit(tmp_path, accumulate_grad_batches=accumulate, max_epochs=2, val_every_n_steps=every)
    assert run.diary.validated == expected


# case: cli-09
def test_validation_continues_counting_after_a_resume(fit: Any, tmp_path: Path) -> None:
    """Every 3 steps of 8, ended at 4: 3, the end at 4, then 6 and 8."""
    first = fit(tmp_path, max_epochs=-1, max_steps=4, val_every_n_steps=3)
    second = fit(tmp_path, max_epochs=-1, max_steps=8, val_every_n_steps=3)
    assert first.diary.validated + second.diary.validated == [3, 4, 6, 8]


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


@pytest.mark.parametrize(
    ("limits", "expected"), [({"max_epochs": 2}, [7, 7]), ({"max_steps": 3}, [6]), ({"max_steps": 6}, [7, 4])]
)
def test_the_bars_total_is_what_the_epoch_will_do(fit: Any, tmp_path: Path, limits: Any, expected: list[int]) -> None:
    """An epoch has 7 micro-batches and 4 steps; 3 steps, and the last 2 of 6, have 2 micro-batches each."""
    totals: list[float] = []

    class Totals(Callback):
        def on_train_epoch_start(self, trainer: Trainer, *args: Any) -> None:
            assert trainer.progress_bar_callback is not None
            totals.append(trainer.progress_bar_callback.total_train_batches)

    assert fit(tmp_path, Totals(), enable_progress_bar=True, **{"max_epochs": -1, **limits}).error is None
    assert totals == expected
