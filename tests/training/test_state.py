"""Stopped and started again is the same as never stopped: weights to the bit, rows, learning rates, steps."""

import math
import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint

from smollit.data import UltraChatDataModule
from smollit.modules import SFTModule
from smollit.training import state
from smollit.training.random_state import get_random_state, set_random_state
from smollit.training.settings import flatten
from smollit.training.steps import at_step_end
from tests.training.conftest import Diary, assert_same_weights


class Stop(Callback):
    """Does something to the run, once, when `when(trainer)` holds in a hook."""

    def __init__(self, hook: str, when: Callable[[Trainer], bool], act: Callable[[], None]) -> None:
        self.when, self.act, self.done = when, act, False
        setattr(self, hook, self._hook)

    def _hook(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        if not self.done and not trainer.sanity_checking and self.when(trainer):
            self.done = True
            self.act()


def sigterm() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def fault() -> None:
    raise RuntimeError("the disk of the data went away")


def kill() -> None:
    raise SystemExit(9)  # nothing is saved at this: the run goes on from a periodic checkpoint


def at(batch: int) -> Callable[[Trainer], bool]:
    """Whether micro-batch number `batch` of the whole run, from 1, is the current one."""
    return lambda trainer: trainer.fit_loop.epoch_loop.total_batch_idx + 1 == batch


def step(number: int) -> Callable[[Trainer], bool]:
    return lambda trainer: trainer.global_step == number


# 7 micro-batches per epoch: 1 2 | 3 4 | 5 6 | 7 || 8 9 | 10 11 | 12 13 | 14 || ...
BREAKS = {
    "sigterm in mid-window": (Stop, "on_train_batch_end", at(3), sigterm, 143, 2),
    "sigterm in epoch 1": (Stop, "on_train_batch_start", at(11), sigterm, 143, 6),
    "sigterm at the last batch of an epoch": (Stop, "on_train_batch_end", at(7), sigterm, 143, 4),
    "sigterm between epochs": (Stop, "on_train_epoch_end", step(8), sigterm, 143, 8),
    "sigterm in validation": (Stop, "on_validation_batch_start", step(6), sigterm, 143, 6),
    "ctrl-c in mid-window": (Stop, "on_train_batch_end", at(8), ctrl_c, 130, 5),
    "fault in mid-window": (Stop, "on_train_batch_start", at(11), fault, None, 5),
    "fault in validation": (Stop, "on_validation_batch_start", step(4), fault, None, 4),
    "kill in mid-window": (Stop, "on_train_batch_end", at(10), kill, 9, 3),
    "kill at an epoch's end": (Stop, "on_train_epoch_start", step(4), kill, 9, 3),
}


@pytest.fixture(scope="module")
def unbroken(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {}


@pytest.fixture
def whole(fit: Any, unbroken: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The run that never stops, made once."""
    if "run" not in unbroken:
        unbroken["run"] = fit(tmp_path_factory.mktemp("unbroken"))
        if unbroken["run"].error is not None:
            raise unbroken.pop("run").error
    return unbroken["run"]


# case: resume-01 resume-02 resume-03 resume-05 checkpoint-03
@pytest.mark.parametrize("name", BREAKS)
def test_broken_run_goes_on_to_the_bit(name: str, fit: Any, whole: Any, tmp_path: Path) -> None:
    """4 steps x 3 epochs, broken at step k: steps k+1..12 have the rows, rates and weights of the whole run, and the
    logs at steps 5 and 10, each over 5 steps, have its figures."""
    make, hook, when, act, code, saved = BREAKS[name]
    broken = fit(tmp_path, make(hook, when, act), checkpoint_every_n_steps=3)
    assert code is None or (isinstance(broken.error, SystemExit) and broken.error.code == code)
    assert code is not None or isinstance(broken.error, RuntimeError)
    # A run that is killed goes on from step 3, the last multiple of 3; all others save the step that they stopped at.
    resumed = fit(tmp_path, checkpoint_every_n_steps=3)
    assert resumed.error is None
    assert [number for number, _, _ in resumed.steps] == list(range(saved + 1, 13))
    assert resumed.steps == whole.steps[saved:]
    assert resumed.trainer.global_step == 12
    assert [number for number, _ in whole.diary.logged] == [5, 10]
    assert resumed.diary.logged == [point for point in whole.diary.logged if point[0] > saved]
    assert resumed.weights.keys() == whole.weights.keys()
    assert all(torch.equal(resumed.weights[key], whole.weights[key]) for key in whole.weights)


def test_what_all_ranks_have_counted_is_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """[1, 2] here and [10, 20] on another rank: [11, 22]. A run that goes on may have other ranks."""
    monkeypatch.setattr(state, "all_ranks", lambda mine: [mine, {"train/loss": [10.0, 20.0]}])
    assert state.over_ranks({"train/loss": torch.tensor([1.0, 2.0])}) == {"train/loss": [11.0, 22.0]}


def test_skipped_steps_are_counted_on(fit: Any, tmp_path: Path) -> None:
    """3 until step 2, one more at step 8: the run that stopped at step 4 logs 3 at step 5 and 4 at step 10."""

    class Skips(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if (trainer.global_step, pl_module.num_skipped_steps) in ((2, 0), (8, 3)):
                pl_module.num_skipped_steps += 3 if trainer.global_step == 2 else 1

    fit(tmp_path, Skips(), Stop("on_train_batch_start", step(4), sigterm))
    resumed = fit(tmp_path, Skips())
    assert [point["train/skipped_steps"] for _, point in resumed.diary.logged] == [3, 4]


# case: resume-03
def test_each_epoch_of_the_whole_run_holds_all_rows_once(whole: Any) -> None:
    """13 rows in each of 3 epochs, in 3 different orders."""
    orders = [whole.diary.epochs[epoch] for epoch in range(3)]
    assert [sorted(order) for order in orders] == [list(range(13))] * 3
    assert len({tuple(order) for order in orders}) == 3


# case: resume-03
def test_checkpoint_of_a_finished_epoch_is_the_start_of_the_next(fit: Any, tmp_path: Path) -> None:
    """Step 4 ends epoch 0 of 13 rows -> (epoch 1, row 0), never (epoch 0, row 13)."""
    fit(tmp_path, max_epochs=1, checkpoint_every_n_steps=4)
    for file in ("last.ckpt", "step-0000004.ckpt"):
        state = torch.load(tmp_path / "checkpoints" / file, weights_only=True)["UltraChatDataModule"]
        assert (state["epoch"], state["rows"]) == (1, 0)


def test_more_epochs_after_the_end_of_a_run_go_on_to_the_bit(fit: Any, whole: Any, tmp_path: Path) -> None:
    """1 epoch, then 3 with a constant rate's own state: steps 5..12 have the rows of the whole run."""
    fit(tmp_path, max_epochs=1)
    resumed = fit(tmp_path)
    assert [rows for _, rows, _ in resumed.steps] == [rows for _, rows, _ in whole.steps[4:]]


def test_max_steps_in_mid_epoch_leaves_the_rest_of_the_epoch(fit: Any, whole: Any, tmp_path: Path) -> None:
    """max_steps 6 ends in epoch 1 after 8 of 13 rows; with max_steps 12 it goes on with the other 5."""
    first = fit(tmp_path, max_epochs=-1, max_steps=6)
    second = fit(tmp_path, max_epochs=-1, max_steps=12)
    assert [rows for _, rows, _ in first.steps + second.steps] == [rows for _, rows, _ in whole.steps]


def test_finished_run_is_left_as_it_is(fit: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """max_steps 2 reached: a second start makes 0 steps, says so, and does not touch last.ckpt."""
    first = fit(tmp_path, max_steps=2)
    before = (tmp_path / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    with caplog.at_level("INFO", logger="smollit"):
        second = fit(tmp_path, max_steps=2)
    assert second.error is None and second.steps == []
    assert "nothing to do" in caplog.text and "step 2" in caplog.text
    assert (tmp_path / "checkpoints" / "last.ckpt").stat().st_mtime_ns == before
    assert all(torch.equal(first.weights[key], second.weights[key]) for key in first.weights)


# case: resume-02
def test_adam_moments_and_cosine_come_back(fit: Any, tmp_path: Path) -> None:
    """Cosine from 1e-3 over 12 steps: step k+1 has 1e-3 (1 + cos(pi k / 12)) / 2, broken at step 4 or not."""
    settings = {"schedule": "cosine"}
    first = fit(tmp_path, Stop("on_train_batch_start", step(4), sigterm), model=settings)
    moments = first.trainer.optimizers[0].state_dict()["state"]
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["optimizer_states"][0]["state"]
    assert all(torch.equal(moments[key]["exp_avg"], saved[key]["exp_avg"]) for key in moments)
    second = fit(tmp_path, model=settings)
    rates = [rate for _, _, rate in first.steps + second.steps]
    expected = [1e-3 * (1 + math.cos(math.pi * k / 12)) / 2 for k in range(12)]
    assert rates == pytest.approx(expected, rel=1e-12)


# case: resume-05
def test_losses_with_dropout_go_on_as_in_the_whole_run(fit: Any, whole: Any, tmp_path: Path) -> None:
    """Dropout 0.1 draws anew in each micro-batch: 4 done, the other 17 of 21 losses are the same numbers."""
    fit(tmp_path, Stop("on_train_batch_start", step(2), sigterm))
    resumed = fit(tmp_path)
    assert resumed.diary.losses == whole.diary.losses[4:]
    still = fit(tmp_path / "still", model={"dropout": 0.0}, max_steps=1)
    assert still.diary.losses[0] != whole.diary.losses[0]  # so dropout was on


def test_callbacks_that_draw_random_numbers_change_nothing(fit: Any, whole: Any, tmp_path: Path) -> None:
    """A callback draws between steps, which the dropout of the next step does not feel."""

    class Draw(Callback):
        def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
            torch.rand(3), random.random(), np.random.rand()

    class DrawAtSteps(Draw):
        def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
            if at_step_end(trainer):
                super().on_train_batch_end()

    drawn = fit(tmp_path, DrawAtSteps())
    assert drawn.diary.losses == whole.diary.losses


# case: resume-06
def test_other_batch_size_goes_on_at_the_same_row(fit: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """12 rows, 6 done at batch 2: at batch 3 rows 7-9 are next, then 10-12; stopped after row 9, 10-12 are left."""
    data = {"shuffle": False, "train_split": "train_sft[:12]"}
    options = {"accumulate_grad_batches": 1, "max_epochs": 1}
    fit(tmp_path, Stop("on_train_batch_start", step(3), sigterm), data=data, **options)
    with caplog.at_level("WARNING", logger="smollit"):
        second = fit(
            tmp_path, Stop("on_train_batch_start", step(4), sigterm), data=data | {"train_batch_size": 3}, **options
        )
    assert "global_batch_size was 2, and is now 3: the run resumes at row 6" in caplog.text
    assert [rows for _, rows, _ in second.steps] == [[6, 7, 8]]
    third = fit(tmp_path, data=data | {"train_batch_size": 3}, **options)
    assert [rows for _, rows, _ in third.steps] == [[9, 10, 11]]


# case: resume-06
def test_batch_size_that_does_not_divide_the_rows_done(fit: Any, tmp_path: Path) -> None:
    """13 rows, 4 done at batch 2, then at batch 5: 4-8 and 9-12; stopped between, 9-12 are left: nothing is lost."""
    data = {"shuffle": False}
    options = {"accumulate_grad_batches": 1, "max_epochs": 1}
    fit(tmp_path, Stop("on_train_batch_start", step(2), sigterm), data=data, **options)
    larger = data | {"train_batch_size": 5}
    second = fit(tmp_path, Stop("on_train_batch_start", step(3), sigterm), data=larger, **options)
    third = fit(tmp_path, data=larger, **options)
    assert [rows for _, rows, _ in second.steps + third.steps] == [[4, 5, 6, 7, 8], [9, 10, 11, 12]]


# case: resume-06
def test_other_accumulation_is_said(fit: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """8 rows done in 2 steps of 2 x 2; with accumulation 1 the next step has rows 9-10 of the order."""
    data = {"shuffle": False}
    fit(tmp_path, Stop("on_train_batch_start", step(2), sigterm), data=data, max_epochs=1)
    with caplog.at_level("WARNING", logger="smollit"):
        second = fit(tmp_path, data=data, max_epochs=1, accumulate_grad_batches=1)
    assert "accumulate_grad_batches was 2, and is now 1" in caplog.text
    assert [rows for _, rows, _ in second.steps] == [[8, 9], [10, 11], [12]]


# case: resume-06
def test_other_data_is_refused(fit: Any, tmp_path: Path) -> None:
    """13 rows, then 12: no row of the saved order means the same."""
    fit(tmp_path, max_steps=2)
    second = fit(tmp_path, data={"train_split": "train_sft[:12]"})
    assert isinstance(second.error, ValueError)
    assert "13 training rows, and the data now has 12" in str(second.error)


# case: resume-06 cli-02
def test_settings_of_the_order_need_force_and_others_are_shown(
    fit: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A new learning rate is warned of; a new seed is an error that names it and the way round; forced, it goes on."""

    class Settings(Callback):
        def __init__(self, **config: Any) -> None:
            self.config = {"data": {"init_args": config}}

        def setup(self, trainer: Any, pl_module: LightningModule, stage: str) -> None:
            trainer.run_state.config = self.config

    fit(tmp_path, Settings(seed=0, num_proc=1), max_steps=2)
    with caplog.at_level("WARNING", logger="smollit"):
        assert fit(tmp_path, Settings(seed=0, num_proc=2), max_steps=3).error is None
    assert "data.init_args.num_proc: 1 -> 2" in caplog.text
    refused = fit(tmp_path, Settings(seed=5), max_steps=4)
    assert isinstance(refused.error, ValueError)
    assert "data.init_args.seed: 0 -> 5" in str(refused.error)
    assert "trainer.force_resume: true" in str(refused.error)
    assert fit(tmp_path, Settings(seed=5), max_steps=4, force_resume=True).error is None


# case: resume-09
def test_nothing_resumes_unasked(fit: Any, tmp_path: Path) -> None:
    """on_exception.ckpt and last.ckpt lie there; ckpt_path null starts at step 1 of the same order."""
    folder = tmp_path / "checkpoints"
    first = fit(tmp_path, OnExceptionCheckpoint(folder), Stop("on_train_batch_start", step(3), fault))
    assert (folder / "on_exception.ckpt").is_file() and (folder / "last.ckpt").is_file()
    again = fit(tmp_path, OnExceptionCheckpoint(folder), ckpt_path=None, max_steps=2)
    assert again.steps[0][:2] == (1, first.steps[0][1])


def test_native_validation_interval_resumes_at_the_border_too(fit: Any, whole: Any, tmp_path: Path) -> None:
    """Lightning's own interval, once per epoch: rows and weights after a break at the border are still the same."""
    options: dict[str, Any] = {"val_every_n_steps": None}
    fit(tmp_path, Stop("on_train_batch_start", step(4), sigterm), **options)
    resumed = fit(tmp_path, **options)
    assert resumed.steps == whole.steps[4:]
    assert resumed.diary.validated == [8, 12]
    assert all(torch.equal(resumed.weights[key], whole.weights[key]) for key in whole.weights)


class Everywhere(ModelCheckpoint):
    """Saves after the third micro-batch of an epoch, in the middle of a window of 2, and after each validation."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if trainer.fit_loop.batch_idx == 2:
            trainer.save_checkpoint(f"{self.dirpath}/window-{trainer.global_step}.ckpt")


# case: resume-01 resume-03
def test_a_checkpoint_stands_at_the_end_of_a_step_wherever_it_is_saved(fit: Any, whole: Any, tmp_path: Path) -> None:
    """Validation by Lightning's interval, every 3 micro-batches, and saves there and in windows of 2: 4 steps an epoch.

    Whatever file is resumed from, the rest of the run is that of the run that never stopped, and it validates.
    """
    options: dict[str, Any] = {"val_every_n_steps": None, "val_check_interval": 3, "check_val_every_n_epoch": None}
    save = Everywhere(tmp_path / "own", "val-{step}", monitor="val/loss", save_top_k=-1, auto_insert_metric_name=False)
    assert fit(tmp_path / "first", save, **options).error is None
    paths = sorted((tmp_path / "own").glob("*.ckpt"))
    assert {path.name for path in paths} >= {"window-1.ckpt", "window-5.ckpt", "val-1.ckpt", "val-3.ckpt", "val-5.ckpt"}
    for path in (paths[0], paths[-1], tmp_path / "own" / "window-5.ckpt", tmp_path / "own" / "val-5.ckpt"):
        done = torch.load(path, weights_only=True)["global_step"]
        resumed = fit(tmp_path / path.stem, ckpt_path=str(path), **options)
        assert resumed.error is None
        assert resumed.steps == whole.steps[done:]
        assert_same_weights(resumed.weights, whole.weights)


# case: resume-01
@pytest.mark.parametrize("streaming", [False, True])
def test_a_plain_trainer_resumes_at_the_right_batch(
    streaming: bool, fit: Any, tiny_model: Path, tiny_data: Any, cache_dir: Path, tmp_path: Path
) -> None:
    """The position is in the data module's own state: 5 steps, and then on to 12, give the weights of 12 at once.

    Without dropout, since a plain Trainer keeps no random states.
    """

    def run(steps: int, ckpt_path: Path | None = None) -> tuple[SFTModule, list[int]]:
        seed_everything(7, verbose=False)
        data = UltraChatDataModule(
            str(tiny_data["ultrachat"]), tokenizer_name=str(tiny_model), max_length=96, train_batch_size=2,
            cache_dir=str(cache_dir), streaming=streaming,
        )  # fmt: skip
        module, diary = SFTModule(model_name=str(tiny_model), learning_rate=1e-3, schedule="constant"), Diary()
        keep = ModelCheckpoint(tmp_path / str(steps), "{step}", every_n_train_steps=1, save_top_k=-1)
        trainer = Trainer(
            max_steps=steps, accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[keep, diary],
            default_root_dir=tmp_path,
        )  # fmt: skip
        trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
        return module, [row for _, rows, _ in diary.steps for row in rows]

    whole, rows = run(12)
    for step in (5, 7):  # inside the first epoch of 7 steps, and at its end
        resumed, rest = run(12, tmp_path / "12" / f"step={step}.ckpt")
        assert rest == rows[-len(rest) :] and len(rest) == len(rows) - (2 * step if step < 7 else 13)
        assert_same_weights(resumed.state_dict(), whole.state_dict())


def test_overfitting_sees_the_same_rows_in_each_epoch(fit: Any, tmp_path: Path) -> None:
    """`overfit_batches: 2` of 2 rows, 3 epochs: the same 4 rows each time."""
    run = fit(tmp_path, overfit_batches=2)
    assert run.error is None
    assert len(run.diary.epochs) == 3 and len({tuple(sorted(rows)) for rows in run.diary.epochs.values()}) == 1


# case: checkpoint-02
def test_dpo_goes_on_to_the_bit_beside_the_original_reference(fit: Any, tmp_path: Path) -> None:
    """Pairs, 4 steps, broken at 2: the last 3 of 7 losses and the weights are the same; the reference is untrained."""
    options: dict[str, Any] = {"kind": "dpo", "max_epochs": 1}
    whole = fit(tmp_path / "whole", **options)
    fit(tmp_path / "broken", Stop("on_train_batch_start", step(2), sigterm), **options)
    resumed = fit(tmp_path / "broken", **options)
    assert resumed.diary.losses == whole.diary.losses[4:]
    assert all(torch.equal(resumed.weights[key], whole.weights[key]) for key in whole.weights)
    reference = resumed.module.reference.state_dict()
    assert all(torch.equal(reference[key], value) for key, value in whole.module.reference.state_dict().items())
    assert any(not torch.equal(reference[key], resumed.weights[key]) for key in reference)


@pytest.fixture
def _own_random_state() -> Iterator[None]:
    before = get_random_state()
    yield
    set_random_state(before)


@pytest.mark.usefixtures("_own_random_state")
def test_random_state_comes_back_and_is_plain(tmp_path: Path) -> None:
    """Saved, 4 numbers drawn, restored from a file read with weights_only: the same 4 numbers again."""

    def draw() -> list[float]:
        return [torch.rand(1).item(), random.random(), float(np.random.rand()), float(np.random.randn())]

    np.random.randn()  # leaves a cached second number behind
    torch.save(get_random_state(), tmp_path / "state.pt")
    first = draw()
    set_random_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert draw() == first


def test_flatten_names_nested_settings() -> None:
    """{"a": {"b": 1}, "c": 2} -> "a.b" and "c"."""
    assert flatten({"a": {"b": 1}, "c": 2}) == {"a.b": 1, "c": 2}
