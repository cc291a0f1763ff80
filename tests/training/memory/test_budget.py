"""`data.max_batch_tokens: auto`, tried with a stand-in for the memory of a GPU."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from smollit.training.memory import budget
from smollit.training.memory.budget import optimizer_bytes
from tests.training.conftest import stop_at

MOST = 300  # positions that the stand-in has memory for
FIXED, PER_POSITION, LONGEST = 1_000_000, 100, 95
# AdamW's two moments of the 84,128 weights of the tiny model, and a count of steps for each of its 20 tensors.
MOMENTS = 4 * (2 * 84_128 + 20)


class StandIn:
    """A GPU whose peak is 1,000,000 bytes and 100 for each position of the passes below: 1, 1 and 4 of the longest row,
    of 95 positions. At 4 rows it has no memory, where `full` says so, so 2 are tried."""

    passes: Iterator[int]
    full = False

    def __init__(self, device: Any) -> None:
        self.rows = iter((1, 1, 4, 2) if self.full else (1, 1, 4))

    def start(self) -> None:
        self.now = next(self.rows)

    def peak(self) -> int:
        if self.full and self.now == 4:
            raise RuntimeError("CUDA out of memory")
        return FIXED + PER_POSITION * LONGEST * self.now

    def total(self) -> float:
        """A tenth of it stays free, and the state of the optimizer comes later."""
        return (FIXED + PER_POSITION * MOST + MOMENTS + 1) / 0.9


# promise: token-budget
@pytest.mark.slow
@pytest.mark.parametrize("full", [False, True])
def test_a_micro_batch_fills_the_memory_that_a_trial_found(
    full: bool, fit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """300 positions fit. No micro-batch has more, some have 3 rows; the trial changes no step; a resumed run takes the
    number from its checkpoint, tries nothing, and makes the steps of a run that never stopped."""
    monkeypatch.setattr(budget, "MEASURED", ("cpu",))
    monkeypatch.setattr(StandIn, "full", full)
    monkeypatch.setattr(budget, "Meter", StandIn)
    data, options = {"train_batch_size": 8, "max_batch_tokens": "auto"}, {"accumulate_grad_batches": 1}
    with caplog.at_level(logging.INFO, logger="smollit"):
        broken = fit(tmp_path / "broken", stop_at(3), data=data, **options)
    assert f"auto is {MOST} positions" in caplog.text
    monkeypatch.delattr(budget, "Meter")
    resumed = fit(tmp_path / "broken", data=data, **options)
    whole = fit(tmp_path / "whole", data=data | {"max_batch_tokens": MOST}, **options)
    assert resumed.error is None, repr(resumed.error)
    assert broken.steps + resumed.steps == whole.steps
    assert all((resumed.weights[name] == weight).all() for name, weight in whole.weights.items())
    assert optimizer_bytes(whole.module) == MOMENTS


@pytest.mark.parametrize(
    ("data", "options", "expected"),
    [
        ({}, {}, "measures a GPU, and this run is on a cpu: give a number"),
        ({"global_batch_size": 4}, {}, "needs micro-batches of equal numbers of rows"),
        ({"streaming": True}, {"max_steps": 1}, "tries the longest row, which `data.streaming` does not know"),
    ],
)
def test_what_a_trial_can_not_find_is_refused(
    fit: Any, tmp_path: Path, data: dict[str, Any], options: dict[str, Any], expected: str
) -> None:
    """With the setting to change."""
    with pytest.raises(ValueError, match=expected):
        raise fit(tmp_path, data={"max_batch_tokens": "auto"} | data, **options).error
