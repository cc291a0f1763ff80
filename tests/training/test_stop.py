"""Signals and faults: what is saved, which code the process ends with, and that signals are given back."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from smollit.modules import SFTModule
from smollit.training.stop import GracefulStop


class Signal(Callback):
    """Sends this process a signal in a hook, once."""

    def __init__(self, hook: str, number: int) -> None:
        self.number, self.sent = number, False
        setattr(self, hook, self._hook)

    def _hook(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
        if not self.sent:
            self.sent = True
            os.kill(os.getpid(), self.number)


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
    """`non_finite: skip`: the run ends at step 4 with 1 skipped step and finite weights."""
    run = fit(tmp_path, module_class=NanAtStep3, model={"non_finite": "skip"}, max_epochs=1)
    assert run.error is None
    assert (run.trainer.global_step, run.module.num_skipped_steps) == (4, 1)
    assert all(value.isfinite().all() for value in run.weights.values())


# case: checkpoint-03
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_before_the_first_step_saves_nothing_over_an_earlier_run(
    fit: Any, tmp_path: Path, number: int, code: int
) -> None:
    """A finished run's last.ckpt at step 2; a new run is stopped at step 0: last.ckpt is still that of step 2."""
    fit(tmp_path, max_steps=2)
    stopped = fit(tmp_path, Signal("on_train_epoch_start", number), ckpt_path=None)
    assert isinstance(stopped.error, SystemExit) and stopped.error.code == code
    assert saved_step(tmp_path) == 2


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_validation_batch_end"])
def test_signals_are_given_back(fit: Any, tmp_path: Path, hook: str) -> None:
    """After a stop, as after a fault or a normal end, the handlers are those from before."""
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    fit(tmp_path, Signal(hook, signal.SIGINT))
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    fit(tmp_path, max_epochs=1)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_second_ctrl_c_stops_at_once() -> None:
    """The first is noted, the second raises, with a shell's code for Ctrl-C, 128 + 2."""
    stop = GracefulStop(None)
    stop.pid = os.getpid()
    stop._receive(signal.SIGINT, None)
    with pytest.raises(SystemExit) as raised:
        stop._receive(signal.SIGINT, None)
    assert raised.value.code == 130


def test_second_ctrl_c_in_mid_step_ends_the_run_with_130_and_saves_nothing(fit: Any, tmp_path: Path) -> None:
    """Two in the first backward pass: no step was made, so there is no last.ckpt."""
    run = fit(tmp_path, *(Signal("on_after_backward", signal.SIGINT) for _ in range(2)))
    assert isinstance(run.error, SystemExit) and run.error.code == 130
    assert not list(tmp_path.rglob("last.ckpt"))


def test_loader_processes_obey_sigterm_and_leave_ctrl_c_to_their_parent() -> None:
    """A forked child that inherits the handler outlives SIGINT, and dies of SIGTERM with 143."""
    stop = GracefulStop(None)
    stop.listen()
    child = os.fork()
    if not child:
        while True:
            time.sleep(0.05)
    stop.leave()
    os.kill(child, signal.SIGINT)
    time.sleep(0.2)
    assert os.waitpid(child, os.WNOHANG) == (0, 0)
    os.kill(child, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 143


def test_sigterm_ends_validate_too(fit: Any, tmp_path: Path) -> None:
    """`validate` alone has nothing to save: it ends with 143 and last.ckpt as it was."""
    run = fit(tmp_path, max_steps=2)
    run.trainer.callbacks.append(Signal("on_validation_batch_start", signal.SIGTERM))
    with pytest.raises(SystemExit) as stopped:
        run.trainer.validate(run.module, datamodule=run.trainer.datamodule, ckpt_path="last")
    assert stopped.value.code == 143
    assert saved_step(tmp_path) == 2


def test_workers_and_a_stop_in_mid_epoch_go_on_the_same(fit: Any, tmp_path: Path) -> None:
    """Two loader processes prefetch ahead; the position counts what was trained, so no row is lost."""
    workers = {"num_workers": 1}
    whole = fit(tmp_path / "whole", max_epochs=2)
    broken = fit(tmp_path, Signal("on_train_batch_end", signal.SIGTERM), data=workers, max_epochs=2)
    resumed = fit(tmp_path, data=workers, max_epochs=2)
    assert broken.steps + resumed.steps == whole.steps


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
            assert process.wait(timeout=60) == code
        finally:
            process.kill()
    assert saved_step(tmp_path) > 0
