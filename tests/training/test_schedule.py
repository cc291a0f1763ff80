"""Validation and learning rates count optimizer steps, whatever the accumulation and the epoch's length."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import LearningRateFinder
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau, StepLR

from tests.training.conftest import stop_at


# case: cli-09
@pytest.mark.slow
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
    """Warm-up 3 to a constant 1e-3: 1/3, 2/3 and then 1 of it, step by step, not epoch by epoch."""
    model = {"schedule": "constant_with_warmup", "num_warmup_steps": 3}
    run = fit(tmp_path, accumulate_grad_batches=accumulate, max_epochs=-1, max_steps=4, model=model)
    assert [rate for _, _, rate in run.steps] == pytest.approx([1e-3 / 3, 2e-3 / 3, 1e-3, 1e-3])


# case: cli-11
def test_max_steps_are_optimizer_steps(fit: Any, tmp_path: Path) -> None:
    """4 steps of 2 micro-batches of 2 rows, in an epoch of 13: 7 micro-batches, the last window is 1 batch of 1 row."""
    run = fit(tmp_path, max_epochs=-1, max_steps=4, data={"train_split": "train_sft[:12]", "train_batch_size": 1})
    assert run.trainer.global_step == 4
    assert len(run.diary.losses) == 8


# case: C2
@pytest.mark.parametrize("schedule", ["constant", "constant_with_warmup"])
def test_a_constant_schedule_warms_up(fit: Any, tmp_path: Path, schedule: str) -> None:
    """Warm-up 2: a half of 1e-3, and then all of it; a warm-up of the whole run is refused in a sentence, and leaves
    only the report on the data."""
    model = {"schedule": schedule, "num_warmup_steps": 2}
    run = fit(tmp_path, max_epochs=-1, max_steps=3, model=model)
    assert [rate for _, _, rate in run.steps] == pytest.approx([5e-4, 1e-3, 1e-3])
    refused = fit(tmp_path / "short", max_epochs=-1, max_steps=2, model=model, logger=True)
    assert "`model.num_warmup_steps` is 2, and the run has 2 optimizer steps" in str(refused.error)
    assert [path.name for path in (tmp_path / "short").iterdir()] == ["data_report.json"]


def rates(run: Any) -> list[float]:
    return [rate for _, _, rate in run.steps]


# promise: other-steps
# case: B3
@pytest.mark.slow
def test_a_resumed_run_takes_the_new_schedule_from_its_step_on(fit: Any, tmp_path: Path) -> None:
    """Peak .003, 4 steps on a line to 0; then 8 steps: (8 - 4) / 8 of .003, and so on. Fewer than 4 are an error; a new
    peak and a constant schedule count from the next step on."""
    options = {"max_epochs": -1, "accumulate_grad_batches": 1, "model": {"learning_rate": 3e-3}}
    assert rates(fit(tmp_path, max_steps=4, **options)) == pytest.approx([3e-3, 2.25e-3, 1.5e-3, 0.75e-3])
    refused = fit(tmp_path, max_steps=3, **options)
    assert "`trainer.max_steps` is 3, and the checkpoint has reached step 4" in str(refused.error)
    assert rates(fit(tmp_path, max_steps=8, **options)) == pytest.approx([1.5e-3, 1.125e-3, 0.75e-3, 0.375e-3])
    model = {"learning_rate": 1e-3, "schedule": "constant"}
    assert rates(fit(tmp_path, max_steps=10, **options | {"model": model})) == pytest.approx([1e-3, 1e-3])


@pytest.mark.slow
def test_a_scheduler_of_torch_resumes_with_a_new_peak(fit: Any, tmp_path: Path) -> None:
    """Halved after each 2 steps: 1, 1, 1/2 | 1/2, 1/4 of the peak, which is .001 | .002; or with other arguments."""
    options = {"max_epochs": -1, "accumulate_grad_batches": 1}
    halved = {"schedule": lambda optimizer: StepLR(optimizer, 2, gamma=0.5)}
    assert rates(fit(tmp_path, max_steps=3, model=halved, **options)) == pytest.approx([1e-3, 1e-3, 5e-4])
    resumed = fit(tmp_path, max_steps=5, model=halved | {"learning_rate": 2e-3}, **options)
    assert rates(resumed) == pytest.approx([1e-3, 5e-4])
    other = {"schedule": lambda optimizer: StepLR(optimizer, 4, gamma=0.1)}  # as if it had been so from the start
    assert rates(fit(tmp_path, max_steps=9, model=other, **options)) == pytest.approx([1e-4, 1e-4, 1e-4, 1e-5])
    plateau = fit(tmp_path / "plateau", max_steps=1, model={"schedule": ReduceLROnPlateau}, **options).error
    assert "`model.schedule` is ReduceLROnPlateau, which needs a metric" in str(plateau)
    own = {"schedule": lambda optimizer: OneCycleLR(optimizer, max_lr=1.0, total_steps=10, div_factor=4)}
    assert rates(fit(tmp_path / "own", max_steps=1, model=own, **options)) == [0.25]  # whatever the peak


# promise: other-steps
# case: B2
@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "total"),
    [
        ({"accumulate_grad_batches": 2}, 10),
        ({"data": {"train_batch_size": 4}}, 7),
        ({}, 16),
        ({"accumulate_grad_batches": 2, "limit_train_batches": 0.8}, 8),
        ({"limit_train_batches": 5}, 10),
    ],
)
def test_steps_made_and_steps_left_are_the_run(fit: Any, tmp_path: Path, changed: dict[str, Any], total: int) -> None:
    """2 epochs of 8 rows, 1 row per step, stopped at step 4. Then 2 rows per step: 4 / 2 + 8 / 2 = 6 steps are left; 4
    rows per step: 3 are left. Limited to int(0.8 x 8) = 6 micro-batches an epoch: 2 / 2 + 6 / 2 = 4 are left; to 5 of
    them, 1 + 5. The rate falls on a line to the last step, which is validated."""
    data = {"train_split": "train_sft[:8]", "train_batch_size": 1}
    options: dict[str, Any] = {"max_epochs": 2, "accumulate_grad_batches": 1, "val_every_n_steps": 100}
    fit(tmp_path, stop_at(4), data=data, **options)
    resumed = fit(tmp_path, **options | changed | {"data": data | changed.get("data", {})})
    assert resumed.error is None
    assert rates(resumed) == pytest.approx([1e-3 * (total - step) / total for step in range(4, total)])
    assert resumed.diary.validated == [total]
    fewer = fit(tmp_path, **options | changed | {"data": data | changed.get("data", {}), "max_epochs": 1})
    assert "`trainer.max_epochs` is 1, and the checkpoint has reached epoch 2" in str(fewer.error)


# case: A5
@pytest.mark.slow
@pytest.mark.parametrize("warmup", [0, 2])
def test_the_found_learning_rate_is_the_peak_of_the_schedule(fit: Any, tmp_path: Path, warmup: int) -> None:
    """Found r, on a line over 48 steps: r, 47/48 r, 46/48 r; with 2 warm-up steps r/2, r, r. A resumed run does not
    search again: it is refused, and the sentence names r, with which it goes on."""
    finder = LearningRateFinder(num_training_steps=20, max_lr=0.1)
    options = {"max_epochs": -1, "accumulate_grad_batches": 1, "max_steps": 48, "model": {"num_warmup_steps": warmup}}
    run = fit(tmp_path, finder, stop_at(3), **options)
    assert finder.optimal_lr is not None
    found = finder.optimal_lr.suggestion()
    assert found and found != 1e-3
    expected = [1 / 2, 1, 1] if warmup else [1, 47 / 48, 46 / 48]
    assert rates(run) == pytest.approx([found * fraction for fraction in expected])
    again = fit(tmp_path, LearningRateFinder(num_training_steps=20, max_lr=0.1), **options)
    assert f"set `model.learning_rate` to {found}, which it found" in str(again.error)
    resumed = fit(tmp_path, stop_at(4), **options | {"model": options["model"] | {"learning_rate": found}})
    assert rates(resumed) == pytest.approx([found * (45 / 46 if warmup else 45 / 48)])


# promise: decay
# case: C4
@pytest.mark.slow
def test_weights_have_their_own_decay_and_rate(fit: Any, tmp_path: Path) -> None:
    """SGD at rate 0.5 with decay 0.1 and no gradient (dropped by a hook): matrices shrink by 1 - 0.05, embeddings,
    which learn at a tenth, by 1 - 0.005, and norms stay, unless `decay_all` is set."""

    class NoGradients(Callback):
        def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
            for weight in pl_module.policy.parameters():
                weight.grad.zero_()

    for decay_all in (False, True):
        model = {"learning_rate": 0.5, "schedule": "constant", "decay_all": decay_all}
        model |= {"optimizer": lambda weights: SGD(weights, weight_decay=0.1)}
        model |= {"learning_rate_factors": {"embed_tokens": 0.1}}
        run = fit(tmp_path / str(decay_all), NoGradients(), max_steps=1, model=model)
        before = fit(tmp_path / "before", max_steps=0).weights
        for name, weight in run.weights.items():
            shrinks = 0.005 if "embed" in name or "head" in name else 0.05 if decay_all or weight.ndim > 1 else 0
            torch.testing.assert_close(weight, before[name] * (1 - shrinks))
    resumed = fit(tmp_path / "True", max_steps=2, model=model | {"decay_all": False})
    assert "as with `model.decay_all: true`" in str(resumed.error)
    nothing = fit(tmp_path / "none", max_steps=1, model={"learning_rate_factors": {"nothing": 0.1}})
    assert "no trainable weight has 'nothing' in its name" in str(nothing.error)
