"""The bar's total is what the run will really do."""

from types import SimpleNamespace
from typing import Any

import pytest

from smollit.training.console import ProgressBar


def bar(**trainer: Any) -> ProgressBar:
    """A bar beside a trainer of which only these figures matter."""
    progress = ProgressBar()
    loop = SimpleNamespace(
        epoch_loop=SimpleNamespace(batch_progress=SimpleNamespace(current=SimpleNamespace(completed=0)))
    )
    progress._trainer = SimpleNamespace(**{"fit_loop": loop, "global_step": 0} | trainer)  # type: ignore[assignment]
    return progress


@pytest.mark.parametrize(("batches", "expected"), [(100, 8), (5, 5)])
def test_total_counts_accumulated_batches(batches: int, expected: int) -> None:
    """4 steps x 2 micro-batches = 8, unless the epoch is shorter."""
    some = bar(num_training_batches=batches, max_epochs=-1, max_steps=4, accumulate_grad_batches=2)
    assert some.total_train_batches == expected


def test_total_is_the_epoch_when_epochs_are_counted() -> None:
    """100 batches an epoch."""
    some = bar(num_training_batches=100, max_epochs=2, max_steps=-1, accumulate_grad_batches=2)
    assert some.total_train_batches == 100
