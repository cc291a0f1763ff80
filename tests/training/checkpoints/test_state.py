"""A run that is stopped and resumed is the same as one that never stopped: weights to the bit, rows, rates, steps."""

import math
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint

from smollit.data import UltraChatDataModule
from smollit.modules import SFTModule
from smollit.training.steps import at_step_end
from tests.training.conftest import Act, Diary, assert_same_weights, ctrl_c, sigterm, slow_but, stop_and_resume, stop_at


def fault() -> None:
    raise RuntimeError("the disk of the data went away")


def kill() -> None:
    raise SystemExit(9)  # nothing is saved at this: the run resumes from a periodic checkpoint


def at(batch: int) -> Callable[[Trainer], bool]:
    """Whether micro-batch number `batch` of the whole run, from 1, is the current one."""
    return lambda trainer: trainer.fit_loop.epoch_loop.total_batch_idx + 1 == batch


def step(number: int) -> Callable[[Trainer], bool]:
    return lambda trainer: trainer.global_step == number


# 7 micro-batches per epoch: 1 2 | 3 4 | 5 6 | 7 || 8 9 | 10 11 | 12 13 | 14 || ...
BREAKS = {
    "sigterm in mid-window": ("on_train_batch_end", at(3), sigterm, 143, 2),
    "sigterm in epoch 1": ("on_train_batch_start", at(11), sigterm, 143, 6),
    "sigterm at the last batch of an epoch": ("on_train_batch_end", at(7), sigterm, 143, 4),
    "sigterm between epochs": ("on_train_epoch_end", step(8), sigterm, 143, 8),
    "sigterm in validation": ("on_validation_batch_start", step(6), sigterm, 143, 6),
    "ctrl-c in mid-window": ("on_train_batch_end", at(8), ctrl_c, 130, 5),
    "fault in mid-window": ("on_train_batch_start", at(11), fault, None, 5),
    "fault in validation": ("on_validation_batch_start", step(4), fault, None, 4),
    "kill in mid-window": ("on_train_batch_end", at(10), kill, 9, 3),
    "kill at an epoch's end": ("on_train_epoch_start", step(4), kill, 9, 3),
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


# promise: resume
# case: resume-01 resume-02 resume-03 resume-05 checkpoint-03
@pytest.mark.parametrize("name", slow_but(BREAKS, "sigterm in mid-window", "kill in mid-window"))
def test_an_interrupted_run_resumes_to_the_bit(name: str, fit: Any, whole: Any, tmp_path: Path) -> None:
    """4 steps x 3 epochs, interrupted at step k: steps k+1..12 have the rows, rates, losses (with dropout) and weights
    of the whole run, and the logs at steps 5, 10 and 12, each over the steps since the last, have its metrics."""
    hook, when, act, code, saved = BREAKS[name]
    broken = fit(tmp_path, Act(hook, when, act), checkpoint_every_n_steps=3)
    assert code is None or (isinstance(broken.error, SystemExit) and broken.error.code == code)
    assert code is not None or isinstance(broken.error, RuntimeError)
    # A run that is killed resumes from step 3, the last multiple of 3; all others save the step that they stopped at.
    resumed = fit(tmp_path, checkpoint_every_n_steps=3)
    assert resumed.error is None
    assert [number for number, _, _ in resumed.steps] == list(range(saved + 1, 13))
    assert resumed.steps == whole.steps[saved:]
    assert resumed.trainer.global_step == 12
    assert resumed.diary.losses == whole.diary.losses[-len(resumed.diary.losses) :]
    assert [number for number, _ in whole.diary.logged] == [5, 10, 12]
    assert resumed.diary.logged == [point for point in whole.diary.logged if point[0] > saved]
    assert_same_weights(resumed.weights, whole.weights)


# case: resume-03
def test_each_epoch_of_the_whole_run_holds_all_rows_once(whole: Any) -> None:
    """13 rows in each of 3 epochs, in 3 different orders."""
    orders = [whole.diary.epochs[epoch] for epoch in range(3)]
    assert [sorted(order) for order in orders] == [list(range(13))] * 3
    assert len({tuple(order) for order in orders}) == 3


@pytest.mark.parametrize(
    ("first", "then"),
    [({"max_epochs": 1}, {}), ({"max_epochs": -1, "max_steps": 6}, {"max_epochs": -1, "max_steps": 12})],
    ids=["more epochs", "more steps, from mid-epoch"],
)
@pytest.mark.slow
def test_a_run_that_has_ended_continues_where_more_is_asked(
    first: Any, then: Any, fit: Any, whole: Any, tmp_path: Path
) -> None:
    """1 epoch, then 3; or 6 steps, which end after 8 of the 13 rows of epoch 1, then 12: all rows of the whole run."""
    ended = fit(tmp_path, **first)
    assert ended.rows + fit(tmp_path, **then).rows == whole.rows


@pytest.mark.slow
def test_a_lower_limit_ends_the_epoch_that_has_passed_it(fit: Any, whole: Any, tmp_path: Path) -> None:
    """Step 3 of 4 is past 2 of 7 batches: epochs 1 and 2 follow, with a step each of their first 2 batches. The rate
    falls from 2/5 of its peak to 1/5."""
    fit(tmp_path, stop_at(3))
    resumed = fit(tmp_path, limit_train_batches=2)
    assert resumed.rows == [whole.rows[4], whole.rows[8]]
    assert [rate for _, _, rate in resumed.steps] == pytest.approx([4e-4, 2e-4])


@pytest.mark.slow
def test_a_rehearsal_looks_at_no_checkpoint_and_barebones_says_when_it_trains(
    fit: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Beside a run of 2 steps, fast_dev_run makes its own first step; 3 steps of a barebones trainer are news."""
    first = fit(tmp_path, max_steps=2)
    saved = (tmp_path / "checkpoints" / "last.ckpt").read_bytes()
    rehearsal = fit(tmp_path, fast_dev_run=True)
    assert rehearsal.error is None and rehearsal.rows[0] == first.rows[0][:2]
    assert (tmp_path / "checkpoints" / "last.ckpt").read_bytes() == saved
    bare = {"barebones": True, "val_every_n_steps": None, "log_every_n_steps": 0, "num_sanity_val_steps": 0}
    with caplog.at_level("INFO", logger="smollit"):
        trained = fit(tmp_path, max_steps=5, gradient_clip_val=None, **bare)
    assert trained.error is None and trained.trainer.global_step == 5
    assert "nothing to do" not in caplog.text


@pytest.mark.slow
def test_what_slurms_signal_left_is_named(fit: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Lightning's file of step 4 beside a run of 2 steps: the run goes on from its own, and says that one is newer."""
    fit(tmp_path / "longer", max_steps=4)
    fit(tmp_path / "run", max_steps=2)
    shutil.copy(tmp_path / "longer/checkpoints/last.ckpt", tmp_path / "run/hpc_ckpt_1.ckpt")
    assert fit(tmp_path / "run", max_steps=3).steps[0][0] == 3
    assert "hpc_ckpt_1.ckpt is newer, of step 4" in caplog.text
    caplog.clear()
    shutil.rmtree(tmp_path / "run/checkpoints")
    assert fit(tmp_path / "run", max_steps=1).steps[0][0] == 1
    assert "hpc_ckpt_1.ckpt is newer, of step 4" in caplog.text


@pytest.mark.slow
def test_finished_run_is_left_as_it_is(fit: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """max_steps 2 reached: a second start makes 0 steps, logs it, and does not touch last.ckpt."""
    first = fit(tmp_path, max_steps=2)
    before = (tmp_path / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    with caplog.at_level("INFO", logger="smollit"):
        second = fit(tmp_path, max_steps=2)
    assert second.error is None and second.steps == []
    assert "nothing to do" in caplog.text and "step 2" in caplog.text
    assert (tmp_path / "checkpoints" / "last.ckpt").stat().st_mtime_ns == before
    assert_same_weights(first.weights, second.weights)


# case: resume-02
@pytest.mark.slow
def test_the_position_in_a_cosine_is_restored(fit: Any, tmp_path: Path) -> None:
    """Cosine from 1e-3 over 12 steps, stopped at step 4: step k+1 has 1e-3 (1 + cos(pi k / 12)) / 2."""
    whole, _ = stop_and_resume(fit, tmp_path, 4, model={"schedule": "cosine"})
    expected = [1e-3 * (1 + math.cos(math.pi * k / 12)) / 2 for k in range(12)]
    assert [rate for _, _, rate in whole.steps] == pytest.approx(expected, rel=1e-12)


# case: resume-05
@pytest.mark.slow
def test_random_numbers_of_a_step_resume_and_those_between_steps_change_nothing(
    fit: Any, whole: Any, tmp_path: Path
) -> None:
    """What torch, numpy and Python draw inside a step is the same after a resume; a callback that draws between steps
    leaves the dropout of the next step as it was."""

    class Draw(Callback):
        def __init__(self) -> None:
            self.drawn: list[tuple[float, ...]] = []

        def draw(self) -> tuple[float, ...]:
            return torch.rand(1).item(), random.random(), float(np.random.rand()), float(np.random.randn())

    class InSteps(Draw):
        def on_before_backward(self, *args: Any) -> None:
            self.drawn.append(self.draw())

    class BetweenSteps(Draw):
        def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
            if at_step_end(trainer):
                self.draw()

    assert fit(tmp_path / "between", BetweenSteps()).diary.losses == whole.diary.losses
    assert fit(tmp_path / "still", model={"dropout": 0.0}, max_steps=1).diary.losses[0] != whole.diary.losses[0]
    expected, before, after = InSteps(), InSteps(), InSteps()
    fit(tmp_path / "whole", expected, max_epochs=1)
    fit(tmp_path / "broken", before, stop_at(2), max_epochs=1)
    fit(tmp_path / "broken", after, max_epochs=1)
    assert len(expected.drawn) == 7
    assert before.drawn + after.drawn == expected.drawn


# What changes: settings before, settings after, optimizer steps before, and the warning.
CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any], int, str]] = {
    "larger batches": ({}, {"train_batch_size": 3}, 3, "global_batch_size was 2, and is now 3"),
    "batches that do not divide the rows done": ({}, {"train_batch_size": 5}, 2, "resumes at row 4"),
    "batches of similar length": ({"group_by_length": True}, {"train_batch_size": 3}, 3, "resumes at row 6"),
    "longest first": ({"longest_first": True}, {"train_batch_size": 3}, 3, "resumes at row 6"),
    "a token budget": ({"train_batch_size": 4, "max_batch_tokens": 200}, {"max_batch_tokens": None}, 2, ""),
    "accumulation": ({"accumulate": 2}, {"accumulate": 1}, 2, "accumulate_grad_batches was 2, and is now 1"),
}


# promise: other-steps
# case: resume-06
@pytest.mark.slow
@pytest.mark.parametrize("name", CHANGES)
def test_other_batch_sizes_keep_the_order_of_the_epoch(
    name: str, fit: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """13 rows, stopped; in batches of another size the other rows come in the order that the first size would have had,
    also if the run is stopped and resumed once more."""
    before, change, steps, warning = CHANGES[name]

    def run(folder: str, *callbacks: Callback, accumulate: int = 1, **data: Any) -> Any:
        options = {"accumulate_grad_batches": accumulate, "max_epochs": 1}
        return fit(tmp_path / folder, *callbacks, data={"longest_first": False} | data, **options)

    order = [row for rows in run("whole", **before).rows for row in rows]
    done = [row for rows in run("broken", stop_at(steps), **before).rows for row in rows]
    after = before | change
    with caplog.at_level("WARNING", logger="smollit"):
        second = run("broken", stop_at(steps + 1), **after)
    third = run("broken", **after)
    size = after.get("train_batch_size", 2)
    assert warning in caplog.text
    assert order[: len(done)] == done and sorted(order) == list(range(13))
    assert second.rows + third.rows == [order[start : start + size] for start in range(len(done), 13, size)]
    assert len(second.rows) == 1


# case: resume-06
def test_other_data_is_refused(fit: Any, tmp_path: Path) -> None:
    """13 rows, then 12: no row of the saved order means the same."""
    fit(tmp_path, max_steps=2)
    second = fit(tmp_path, data={"train_split": "train_sft[:12]"})
    assert isinstance(second.error, ValueError)
    assert "13 training rows, and the data now has 12" in str(second.error)


# promise: same-tokens
# case: resume-06 cli-02
@pytest.mark.slow
def test_settings_of_tokens_and_order_need_force_and_others_are_shown(
    fit: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A new number of processes is logged; new settings of tokens and order, all at once, are an error that names each
    of them and what to do; with force, the run resumes."""
    names = [*UltraChatDataModule.token_settings, *UltraChatDataModule.order_settings]

    class Settings(Callback):
        def __init__(self, value: str, **config: Any) -> None:
            self.config = {"data": {"init_args": dict.fromkeys(names, value) | config}}

        def setup(self, trainer: Any, pl_module: LightningModule, stage: str) -> None:
            trainer.run_state.config = self.config

    fit(tmp_path, Settings("before", num_proc=1), max_steps=2)
    with caplog.at_level("WARNING", logger="smollit"):
        assert fit(tmp_path, Settings("before", num_proc=2), max_steps=3).error is None
    assert "`data.num_proc` (1 -> 2)" in caplog.text
    refused = fit(tmp_path, Settings("after"), max_steps=4)
    assert isinstance(refused.error, ValueError)
    assert set(re.findall("`(data.[a-z_]+)` \\('before' -> 'after'\\)", str(refused.error))) == {
        f"data.{n}" for n in names
    }
    assert "trainer.force_resume: true" in str(refused.error)
    assert fit(tmp_path, Settings("after"), max_steps=4, force_resume=True).error is None


# case: resume-09
def test_nothing_resumes_unasked(fit: Any, tmp_path: Path) -> None:
    """on_exception.ckpt and last.ckpt are in the folder; ckpt_path null starts at step 1 of the same order."""
    folder = tmp_path / "checkpoints"
    first = fit(tmp_path, OnExceptionCheckpoint(folder), Act("on_train_batch_start", step(3), fault))
    assert (folder / "on_exception.ckpt").is_file() and (folder / "last.ckpt").is_file()
    again = fit(tmp_path, OnExceptionCheckpoint(folder), ckpt_path=None, max_steps=2)
    assert again.steps[0][:2] == (1, first.steps[0][1])


@pytest.mark.slow
def test_native_validation_interval_resumes_at_the_end_of_an_epoch_too(fit: Any, whole: Any, tmp_path: Path) -> None:
    """Lightning's own interval, once per epoch, which has no part in rows and weights."""
    unbroken, resumed = stop_and_resume(fit, tmp_path, 4, val_every_n_steps=None)
    assert unbroken.steps == whole.steps
    assert resumed.diary.validated == [8, 12]


class Everywhere(ModelCheckpoint):
    """Saves after the third micro-batch of an epoch, in the middle of a window of 2, and after each validation."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if trainer.fit_loop.batch_idx == 2:
            trainer.save_checkpoint(f"{self.dirpath}/window-{trainer.global_step}.ckpt")


# case: resume-01 resume-03
@pytest.mark.slow
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


# promise: plain-trainer
# case: resume-01
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.slow
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


# case: A4
def test_overfitting_sees_the_same_rows_in_each_epoch(fit: Any, tmp_path: Path) -> None:
    """`overfit_batches: 2` of 2 rows, 3 epochs: the same 4 rows each time."""
    run = fit(tmp_path, overfit_batches=2)
    assert run.error is None
    assert len(run.diary.epochs) == 3 and len({tuple(sorted(rows)) for rows in run.diary.epochs.values()}) == 1


# case: checkpoint-02
@pytest.mark.slow
def test_dpo_resumes_beside_the_original_reference(fit: Any, tmp_path: Path) -> None:
    """Pairs, 4 steps, stopped at 2: the last 3 of 7 losses are the same; the reference is the untrained model."""
    whole, resumed = stop_and_resume(fit, tmp_path, 2, kind="dpo", max_epochs=1)
    assert resumed.diary.losses == whole.diary.losses[4:]
    reference = resumed.module.reference.state_dict()
    assert_same_weights(reference, whole.module.reference.state_dict())
    assert any(not torch.equal(reference[key], resumed.weights[key]) for key in reference)
