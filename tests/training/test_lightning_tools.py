"""Lightning's own callbacks inside a run of smollit, with no flag set by the user."""

import csv
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    DeviceStatsMonitor,
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelPruning,
    RichProgressBar,
    StochasticWeightAveraging,
    Timer,
    WeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger

from smollit.modules import SFTModule
from smollit.training.checkpoints.files import find_checkpoint
from tests.training.conftest import assert_same_weights, stop_at


class Scripted(SFTModule):
    """Its validation loss is 7.2 - 0.2 x step, or never gets better."""

    gets_better = True

    def on_validation_epoch_end(self) -> None:
        step = self.trainer.global_step
        self.report({"val/loss": torch.tensor(7.6 - 0.2 * step if self.gets_better else 7.0)})


class NeverBetter(Scripted):
    gets_better = False


EIGHT_STEPS: dict[str, Any] = {"data": {"train_split": "train_sft[:8]", "train_batch_size": 1}, "max_epochs": 2,
                               "accumulate_grad_batches": 1, "val_every_n_steps": 2}  # fmt: skip


# case: A1
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.slow
def test_early_stopping_looks_at_each_validation(
    accumulate: int, fit: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Validation every 2 steps, patience 2: the first is the best, the second and third are not better -> step 6.

    The same command again makes 0 steps and logs why. With 3 micro-batches per step, of 8 per epoch, windows are short.
    """
    options = EIGHT_STEPS | {"accumulate_grad_batches": accumulate, "max_epochs": 2 * accumulate}
    first = fit(tmp_path, EarlyStopping("val/loss", patience=2), module_class=NeverBetter, **options)
    assert first.error is None and first.diary.validated == [2, 4, 6] and first.trainer.global_step == 6
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["run_state"]["ended"]
    assert "did not improve in the last 2 records" in saved["why"]
    with caplog.at_level(logging.INFO, logger="smollit"):
        again = fit(tmp_path, EarlyStopping("val/loss", patience=2), module_class=NeverBetter, **options)
    assert again.error is None and again.steps == []
    assert "nothing to do" in caplog.text and "did not improve in the last 2 records" in caplog.text
    forced = fit(
        tmp_path, EarlyStopping("val/loss", patience=2), module_class=NeverBetter, force_resume=True, **options
    )
    assert [number for number, _, _ in forced.steps] == [7, 8]


@pytest.mark.slow
def test_the_wait_count_of_early_stopping_is_resumed(fit: Any, tmp_path: Path) -> None:
    """Ended at step 4 with one validation that was not better: the next one, at step 6, is the second."""
    options = EIGHT_STEPS | {"max_epochs": None, "module_class": NeverBetter}
    fit(tmp_path, EarlyStopping("val/loss", patience=2), max_steps=4, **options)
    resumed = fit(tmp_path, EarlyStopping("val/loss", patience=2), max_steps=16, **options)
    assert resumed.trainer.global_step == 6


def test_a_misspelt_monitor_is_named_at_the_start(fit: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Lightning misses it at the first validation, at step 2; a metric of the run and `step` are not named."""
    watch = [EarlyStopping("val_loss"), ModelCheckpoint(tmp_path, monitor="step", mode="max")]
    run = fit(tmp_path, EarlyStopping("val/loss"), *watch, **EIGHT_STEPS)
    assert run.trainer.global_step == 2 and "`val_loss` which is not available" in str(run.error)
    assert [m for m in caplog.messages if " watches " in m] == [
        "EarlyStopping watches val_loss: if nothing logs it, take val/loss"
    ]


@pytest.mark.slow
def test_a_resumed_run_may_be_more_patient(fit: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Ended at step 6 by a patience of 2. With 3, the run continues by itself, to the third validation that is not
    better, at step 8, which ends it again."""
    options = EIGHT_STEPS | {"module_class": NeverBetter}
    fit(tmp_path, EarlyStopping("val/loss", patience=2), **options)
    resumed, again = (fit(tmp_path, EarlyStopping("val/loss", patience=3), **options) for _ in range(2))
    assert [number for number, _, _ in resumed.steps] == [7, 8] and again.steps == []
    assert "the patience of EarlyStopping was 2, and is now 3" in caplog.text


# case: A2
@pytest.mark.slow
def test_model_checkpoint_pairs_each_file_with_the_value_of_its_own_step(fit: Any, tmp_path: Path) -> None:
    """val/loss 7.2, 6.8, 6.4 at steps 2, 4, 6: three files with just these pairs, also where steps are what it counts;
    the top 1 is step 6's."""
    options = EIGHT_STEPS | {"max_epochs": None, "max_steps": 6, "module_class": Scripted}
    for folder, top_k, every in (("all", -1, None), ("steps", -1, 2), ("best", 1, None)):
        keep = ModelCheckpoint(tmp_path / folder, "{step}-{val/loss:.1f}", monitor="val/loss", save_top_k=top_k,
                               auto_insert_metric_name=False, every_n_train_steps=every)  # fmt: skip
        run = fit(tmp_path / folder, keep, **options)
        assert run.error is None
        assert find_checkpoint("best", run.trainer.checkpoint_folder) == tmp_path / folder / "6-6.4.ckpt"
    for folder in ("all", "steps"):
        paths = (tmp_path / folder).glob("*.ckpt")
        files = {path.name: torch.load(path, weights_only=True)["global_step"] for path in paths}
        assert files == {"2-7.2.ckpt": 2, "4-6.8.ckpt": 4, "6-6.4.ckpt": 6}
    assert [path.name for path in (tmp_path / "best").glob("*.ckpt")] == ["6-6.4.ckpt"]


# case: A7
def test_logged_metrics_hold_what_was_logged_last(fit: Any, tmp_path: Path) -> None:
    """Steps 1 to 4 are logged once each, at the number of optimizer steps; validations at 2 and 4; the last values."""
    run = fit(tmp_path, max_epochs=1, log_every_n_steps=1, logger=CSVLogger(str(tmp_path), name="", version=""))
    assert run.error is None
    table = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    for name, steps in {"train/loss": [1, 2, 3, 4], "val/loss": [2, 4]}.items():
        points = [(int(row["step"]), float(row[name])) for row in table if row.get(name)]
        assert [step for step, _ in points] == steps
        assert float(run.trainer.logged_metrics[name]) == pytest.approx(points[-1][1])
        assert float(run.trainer.callback_metrics[name]) == pytest.approx(points[-1][1])


@pytest.mark.slow
def test_a_scheduled_accumulation_is_counted_and_resumed(fit: Any, tmp_path: Path) -> None:
    """7 micro-batches an epoch: 7 steps of one, then 2 x 4 of two, are 15, and the rate falls on a line over 15.
    Stopped in the second epoch and resumed, the run is the same."""

    def run(folder: str, *callbacks: Callback) -> Any:
        scheduled = GradientAccumulationScheduler({0: 1, 1: 2})
        return fit(tmp_path / folder, scheduled, *callbacks, accumulate_grad_batches=1)

    whole = run("whole")
    assert whole.diary.validated == [2, 4, 6, 8, 10, 12, 14, 15]
    assert [rate for _, _, rate in whole.steps] == pytest.approx([1e-3 * (15 - k) / 15 for k in range(15)])
    broken, resumed = run("broken", stop_at(9)), run("broken")
    assert broken.steps + resumed.steps == whole.steps
    assert_same_weights(resumed.weights, whole.weights)


STOCK: dict[str, tuple[Callable[[], list[Callback]], dict[str, Any]]] = {
    "rates": (lambda: [LearningRateMonitor(log_momentum=True)], {"logger": True}),
    "device": (lambda: [DeviceStatsMonitor(cpu_stats=True)], {"logger": True, "log_every_n_steps": 1}),
    "timer": (lambda: [Timer("00:01:00:00")], {}),
    "averages": (lambda: [WeightAveraging()], {}),
    "bars": (lambda: [RichProgressBar()], {"enable_progress_bar": True}),
    "overfit_batches": (list, {"overfit_batches": 5, "max_epochs": 4}),
    "limit_train_batches": (list, {"limit_train_batches": 5, "limit_val_batches": 0.5}),
    "detect_anomaly": (list, {"detect_anomaly": True, "inference_mode": False}),
    "reloaded": (list, {"reload_dataloaders_every_n_epochs": 2, "profiler": "simple"}),
    "a fraction": (list, {"val_every_n_steps": None, "val_check_interval": 0.5}),
    "a time": (list, {"val_every_n_steps": None, "val_check_interval": "00:00:00:01"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", STOCK)
def test_stock_callbacks_and_flags_resume_to_the_bit(name: str, fit: Any, tmp_path: Path) -> None:
    """Stopped at step 7 of 9 to 12, and resumed; then the same command once more, which makes no step."""
    callbacks, options = STOCK[name]
    whole = fit(tmp_path / "whole", *callbacks(), **options)
    broken = fit(tmp_path / "broken", *callbacks(), stop_at(7), **options)
    resumed = fit(tmp_path / "broken", *callbacks(), **options)
    again = fit(tmp_path / "broken", *callbacks(), **options)
    assert whole.error is None and resumed.error is None and again.error is None and again.steps == []
    assert len(broken.steps) == 7 and broken.steps + resumed.steps == whole.steps
    assert_same_weights(resumed.weights, whole.weights)


@pytest.mark.parametrize(
    ("callback", "said"),
    [
        (StochasticWeightAveraging(1e-3), "would average nothing: use EMAWeightAveraging"),
        (ModelPruning("l1_unstructured"), "would prune nothing"),
        (BackboneFinetuning(), "finds nothing to freeze: set `model.adapter`"),
    ],
)
def test_callbacks_that_come_before_the_weights_are_refused(
    callback: Callback, said: str, fit: Any, tmp_path: Path
) -> None:
    run = fit(tmp_path, callback)
    assert isinstance(run.error, ValueError) and said in str(run.error) and run.steps == []


@pytest.mark.parametrize("off", [{"data": {"val_split": None}}, {"limit_val_batches": 0}])
def test_nothing_watches_a_validation_that_there_is_not(off: Any, fit: Any, tmp_path: Path) -> None:
    options = {"`trainer.keep_best` watches val/loss": ([], {"keep_best": "val/loss"})}
    options |= {"EarlyStopping watches val/loss": ([EarlyStopping("val/loss")], {})}
    for said, (callbacks, trainer) in options.items():
        assert f"{said}, and there is no validation" in str(fit(tmp_path, *callbacks, **off, **trainer).error)


def test_a_stop_in_mid_window_finishes_the_step_and_validates_once(fit: Any, tmp_path: Path) -> None:
    """As Lightning's Timer does, after the third micro-batch of windows of 2, with a validation every 3 steps."""

    class TimeIsOver(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            trainer.should_stop = batch_idx == 2

    run = fit(tmp_path, TimeIsOver(), val_every_n_steps=3)
    assert run.error is None and run.trainer.global_step == 2 and run.diary.validated == [2]


def test_a_finished_run_starts_again_with_a_profiler(fit: Any, tmp_path: Path) -> None:
    """torch's profiler records from the third step on: Lightning asserts that it did, and a start may make no step."""
    for steps in ([1, 2], []):
        run = fit(tmp_path, max_epochs=None, max_steps=2, profiler="pytorch")
        assert run.error is None and [number for number, _, _ in run.steps] == steps
