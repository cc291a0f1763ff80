"""Signals and errors: what is saved, the exit code of the process, and that signal handlers are restored."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.plugins.precision import MixedPrecision
from torch.amp import GradScaler
from torch.optim import AdamW

from smollit.modules import SFTModule
from tests.training.conftest import Act, ctrl_c, sigterm


class NanAtStep3(SFTModule):
    """Its loss is NaN in the third optimizer step."""

    def step(self, batch: Any, stage: Any) -> Any:
        loss, count = super().step(batch, stage)
        return loss * (float("nan") if stage == "train" and self.trainer.global_step == 2 else 1.0), count


def saved_step(folder: Path) -> int:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]


# case: precision-03
def test_nan_stops_with_step_rate_and_rows_and_keeps_the_step_before(fit: Any, tmp_path: Path) -> None:
    """NaN in step 3 of rows 8-11, constant rate 1e-3: named; last.ckpt is step 2, with the weights in memory."""
    run = fit(tmp_path, module_class=NanAtStep3, data={"shuffle": False}, model={"schedule": "constant"})
    message = str(run.error)
    assert "step 3" in message and "learning rate 0.001" in message and "rows 8, 9, 10, 11." in message
    assert saved_step(tmp_path) == 2
    reached = fit(tmp_path / "two", data={"shuffle": False}, model={"schedule": "constant"}, max_steps=2)
    state = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(state[f"policy.{name}"], value) for name, value in reached.weights.items())


# case: precision-03
def test_nan_can_be_skipped(fit: Any, tmp_path: Path) -> None:
    """`non_finite: skip`: the run ends at step 4 with 1 skipped step and finite weights; resumed, it still counts 1 at
    steps 5, 10 and, the last, 12."""
    options = {"module_class": NanAtStep3, "model": {"non_finite": "skip"}}
    run = fit(tmp_path, max_epochs=1, **options)
    assert run.error is None
    assert (run.trainer.global_step, run.module.lost_steps.skipped) == (4, 1)
    assert all(value.isfinite().all() for value in run.weights.values())
    logged = fit(tmp_path, **options).diary.logged
    assert [(step, metrics["train/skipped_steps"]) for step, metrics in logged] == [(5, 1), (10, 1), (12, 1)]


class AlwaysNan(SFTModule):
    """Its loss is NaN from the third optimizer step on."""

    def step(self, batch: Any, stage: Any) -> Any:
        loss, count = super().step(batch, stage)
        return loss * (float("nan") if self.trainer.training and self.trainer.global_step >= 2 else 1.0), count


# promise: finite
# case: B5
def test_the_run_stops_after_five_skipped_steps_in_a_row(
    fit: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Steps 3 to 6 are skipped, each with a warning; step 7 ends the run, saved at step 6 with finite weights."""
    run = fit(tmp_path, module_class=AlwaysNan, model={"non_finite": "skip"})
    assert re.search(
        r"step 7: loss nan.*and so were the 4 steps before it: lower `model.learning_rate`", str(run.error)
    )
    said = [message for message in caplog.messages if "the step is skipped" in message]
    assert [message.partition(":")[0] for message in said] == ["step 3", "step 4", "step 5", "step 6"]
    assert saved_step(tmp_path) == 6
    assert all(value.isfinite().all() for value in run.weights.values())


def scaler() -> MixedPrecision:
    """fp16's gradient scaler, with a scale at which each gradient overflows."""
    return MixedPrecision("16-mixed", "cpu", GradScaler("cpu", init_scale=1e38, growth_interval=10**6))


# promise: nothing-trained
# case: C3
def test_a_run_that_trains_nothing_ends_with_the_cause(fit: Any, tmp_path: Path) -> None:
    """A stream whose rows all have no loss token left at 4 tokens; fp16 with 3 of 3 steps skipped. Nothing is saved,
    and the same command again does not call it finished."""
    streaming = {"data": {"streaming": True, "max_length": 4, "val_split": None}, "val_every_n_steps": None}
    causes = {
        "had no loss token or pair": streaming,
        "overflowed in fp16": {"plugins": [scaler()], "val_every_n_steps": None},
    }
    for number, (cause, options) in enumerate(causes.items()):
        folder = tmp_path / str(number)
        saved = {"checkpoint_every_n_steps": 3, "max_epochs": -1, "max_steps": 3}
        for _ in range(2):
            error = str(fit(folder, **saved | options).error)
            assert "nothing was trained: of 3 optimizer steps, 3 " in error and cause in error
        assert not (folder / "checkpoints" / "last.ckpt").exists()


@pytest.mark.slow
def test_overflows_of_fp16_are_counted_apart(fit: Any, tmp_path: Path) -> None:
    """The scale 1e38 is halved with each overflow until the gradients fit, 2^100 times lower: 32 in a row stop."""
    run = fit(tmp_path, plugins=[scaler()], max_epochs=-1, max_steps=40)
    assert "and so were the 31 steps before it" in str(run.error) and "bf16-mixed" in str(run.error)
    assert (run.module.lost_steps.skipped, run.module.lost_steps.overflowed) == (0, 32)


# case: B5
@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"gradient_clip_val": float("nan")}, "trainer.gradient_clip_val"),
        ({"model": {"temperature": float("inf")}}, "model.temperature"),
        ({"model": {"dropout": 2}}, "model.dropout"),
        ({"model": {"optimizer": lambda weights: AdamW(weights, weight_decay=float("inf"))}}, "weight_decay must be"),
    ],
)
def test_numbers_that_are_not_finite_are_refused_by_name(fit: Any, tmp_path: Path, options: Any, name: str) -> None:
    try:
        error = fit(tmp_path, **options).error
    except ValueError as refused:
        error = refused
    assert isinstance(error, ValueError) and name in str(error)


# case: B14
@pytest.mark.parametrize("hook", ["setup", "on_fit_start"])
def test_ctrl_c_in_start_up_exits_with_130(fit: Any, tmp_path: Path, hook: str) -> None:
    """While rows or models are loaded, nothing is saved; the handler is the one from before again."""
    before = signal.getsignal(signal.SIGINT)
    stopped = fit(tmp_path, Act(hook, act=ctrl_c))
    assert isinstance(stopped.error, SystemExit) and stopped.error.code == 130
    assert signal.getsignal(signal.SIGINT) == before
    assert not list(tmp_path.rglob("last.ckpt"))


def hang_up() -> None:
    os.kill(os.getpid(), signal.SIGHUP)


# promise: stops
# case: B14
@pytest.mark.slow
def test_a_closing_terminal_saves_unless_nohup_ignores_it(fit: Any, tmp_path: Path) -> None:
    """SIGHUP in step 3 of 4: exit code 129 and last.ckpt of step 3; ignored, the run goes on to its end."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever these tests were started by
    try:
        act = Act("on_after_backward", lambda trainer: trainer.global_step == 2, hang_up)
        stopped = fit(tmp_path / "stopped", act, max_epochs=1)
        assert isinstance(stopped.error, SystemExit) and stopped.error.code == 129
        assert saved_step(tmp_path / "stopped") == 3
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        run = fit(tmp_path / "nohup", Act("on_after_backward", act=hang_up), max_epochs=1)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert run.error is None and saved_step(tmp_path / "nohup") == 4


# case: checkpoint-03
@pytest.mark.parametrize(("send", "code"), [(sigterm, 143), (ctrl_c, 130)])
def test_signal_before_the_first_step_saves_nothing_over_an_earlier_run(
    fit: Any, tmp_path: Path, send: Any, code: int
) -> None:
    """A finished run's last.ckpt at step 2; a new run is stopped at step 0: last.ckpt is still that of step 2."""
    fit(tmp_path, max_steps=2)
    stopped = fit(tmp_path, Act("on_train_epoch_start", act=send), ckpt_path=None)
    assert isinstance(stopped.error, SystemExit) and stopped.error.code == code
    assert saved_step(tmp_path) == 2


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_validation_batch_end"])
def test_signal_handlers_are_restored(fit: Any, tmp_path: Path, hook: str) -> None:
    """After a stop, as after a normal end, the handlers are those from before."""
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    assert isinstance(fit(tmp_path, Act(hook, act=ctrl_c)).error, SystemExit)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    fit(tmp_path, max_epochs=1)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_second_ctrl_c_in_mid_step_ends_the_run_with_130_and_saves_nothing(fit: Any, tmp_path: Path) -> None:
    """Two in the first backward pass: no step was made, so there is no last.ckpt."""
    run = fit(tmp_path, *(Act("on_after_backward", act=ctrl_c) for _ in range(2)))
    assert isinstance(run.error, SystemExit) and run.error.code == 130
    assert not list(tmp_path.rglob("last.ckpt"))


def test_loader_processes_obey_sigterm_and_leave_ctrl_c_to_their_parent(fit: Any, tmp_path: Path) -> None:
    """A child that is forked in training, as those of a loader are, outlives SIGINT, and dies of SIGTERM with 143."""
    found: list[Any] = []

    class Forks(Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            child = os.fork()
            while not child:
                time.sleep(0.05)
            os.kill(child, signal.SIGINT)
            time.sleep(0.2)
            found.append(os.waitpid(child, os.WNOHANG))
            os.kill(child, signal.SIGTERM)
            found.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    assert fit(tmp_path, Forks(), max_steps=1, accumulate_grad_batches=1).error is None
    assert found == [(0, 0), 143]


def test_sigterm_ends_validate_too(fit: Any, tmp_path: Path) -> None:
    """`validate` alone has nothing to save: it ends with 143 and last.ckpt as it was."""
    run = fit(tmp_path, max_steps=2)
    run.trainer.callbacks.append(Act("on_validation_batch_start"))
    with pytest.raises(SystemExit) as stopped:
        run.trainer.validate(run.module, datamodule=run.trainer.datamodule, ckpt_path="last")
    assert stopped.value.code == 143
    assert saved_step(tmp_path) == 2


# promise: stops
# case: checkpoint-03
@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_process_ends_with_the_shells_code(
    tiny_model: Path, tiny_data: dict[str, Path], cache_dir: Path, tmp_path: Path, number: int, code: int
) -> None:
    """A real signal to `python -m smollit fit` once a checkpoint stands: code 128 + number, and last.ckpt."""
    arguments = {
        "model": "smollit.modules.SFTModule",
        "model.model_name": tiny_model,
        "data": "smollit.data.UltraChatDataModule",
        "data.dataset": tiny_data["ultrachat"],
        "data.max_length": 96,
        "data.cache_dir": cache_dir,
        "trainer.default_root_dir": tmp_path,
        "trainer.max_steps": 100_000,
        "trainer.checkpoint_every_n_steps": 1,
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": "false",
    }
    command = [sys.executable, "-m", "smollit", "fit", *(f"--{name}={value}" for name, value in arguments.items())]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2]) as process:
        try:
            deadline = time.monotonic() + 90
            while not list((tmp_path / "checkpoints").glob("step-*.ckpt")) and time.monotonic() < deadline:
                assert process.poll() is None
                time.sleep(0.1)
            process.send_signal(number)
            assert process.wait(timeout=300) == code
        finally:
            process.kill()
    assert saved_step(tmp_path) > 0
