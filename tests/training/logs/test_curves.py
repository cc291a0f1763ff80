"""Each step stands once in TensorBoard's files and in metrics.csv, whatever happened to the run."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import DummyLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from smollit.training.ledger import read_ledger
from smollit.training.logs.table import read_table
from tests.training.conftest import Act


def files(folder: Path) -> dict[str, bytes]:
    """The content of every file of a run."""
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def events(folder: Path, name: str) -> list[int]:
    """The steps of a curve as they stand in the files, one file after the other."""
    steps = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        reader = EventAccumulator(str(path), purge_orphaned_data=False).Reload()
        steps += [event.step for event in reader.Scalars(name)] if name in reader.Tags()["scalars"] else []
    return steps


def column(folder: Path, name: str) -> dict[int, float]:
    """The values of a metric by step, from the table."""
    return {int(row["step"]): float(row[name]) for row in read_table(folder / "metrics.csv") if row.get(name)}


class Snapshot(Callback):
    """What a SIGKILL at step `step` would leave on the disk, as a copy of the run folder."""

    def __init__(self, step: int, target: Path) -> None:
        self.step, self.target = step, target

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == self.step and not self.target.exists():
            trainer.loggers[0].experiment.flush()
            shutil.copytree(trainer.default_root_dir, self.target)


RUN = {"logger": True, "log_every_n_steps": 1, "max_epochs": 2, "checkpoint_every_n_steps": 3, "keep_checkpoints": 9}


# case: B7
# promise: curves-once
@pytest.mark.slow
def test_each_step_once_after_a_kill(fit: Any, tmp_path: Path) -> None:
    """7 micro-batches, 2 per step, 2 epochs: 8 steps. Killed at 5 and resumed from the checkpoint of step 3: the points
    of steps 4 and 5 are there before, and once afterwards, with the values of a run that was never killed. An
    incomplete line of the table does not matter. Validation at steps 2, 4, 6 and 8."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    fit(whole, Snapshot(5, killed), **RUN)
    assert events(killed, "train/loss") == [1, 2, 3, 4, 5]
    with (killed / "metrics.csv").open("a") as file:
        file.write("6,0.1")
    fit(killed, **RUN)
    for folder in (whole, killed):
        assert events(folder, "train/loss") == list(column(folder, "train/loss")) == list(range(1, 9))
        assert events(folder, "val/loss") == list(column(folder, "val/loss")) == [2, 4, 6, 8]
    assert column(killed, "train/loss") == column(whole, "train/loss")


@pytest.mark.slow
def test_a_logger_that_takes_no_point_back_is_named(fit: Any, tmp_path: Path, caplog: Any) -> None:
    """Killed at 5, resumed from the checkpoint of step 3: steps 4 and 5 are sent again. A second start repeats none."""
    killed, options = tmp_path / "killed", {**RUN, "logger": DummyLogger()}
    fit(tmp_path / "whole", Snapshot(5, killed), **RUN)
    for _ in range(2):
        fit(killed, **options)
    (said,) = [message for message in caplog.messages if "stand there twice" in message]
    assert said.startswith("DummyLogger: the points of steps 4 to 5 ")
    assert list(column(killed, "train/loss")) == list(range(1, 9))


# case: B7
@pytest.mark.slow
def test_a_step_is_logged_before_its_checkpoint(fit: Any, tmp_path: Path) -> None:
    """A run that is killed right after the save of step 3 does not make step 3 again: its metrics are on the disk."""
    found = []
    look = Act(
        "on_save_checkpoint",
        lambda trainer: trainer.global_step == 3,
        lambda: found.extend((events(tmp_path / "run", "train/loss"), list(column(tmp_path / "run", "train/loss")))),
    )
    fit(tmp_path / "run", look, **RUN)
    assert found == [[1, 2, 3], [1, 2, 3]]
    assert events(tmp_path / "run", "train/loss") == list(range(1, 9))


# promise: nothing-to-do
# case: B7
@pytest.mark.slow
def test_a_finished_run_that_is_started_again_changes_no_file(fit: Any, tmp_path: Path) -> None:
    fit(tmp_path / "run", **RUN)
    before = files(tmp_path / "run")
    assert fit(tmp_path / "run", **RUN).steps == []
    assert files(tmp_path / "run") == before


@pytest.mark.slow
def test_a_new_run_in_the_same_folder_starts_new_curves(fit: Any, tmp_path: Path) -> None:
    """8 steps, then a new run of 2: nothing of the old curves is left, step 0 included."""
    options = {**RUN, "num_sanity_val_steps": -1}
    fit(tmp_path / "run", **options)
    fit(tmp_path / "run", ckpt_path=None, max_steps=2, **options)
    assert events(tmp_path / "run", "val/loss") == list(column(tmp_path / "run", "val/loss")) == [0, 2]
    assert events(tmp_path / "run", "train/loss") == [1, 2]


@pytest.mark.parametrize("hook", ["setup", "on_fit_start", "on_train_start"])
@pytest.mark.slow
def test_the_same_trainer_fits_again_after_a_refused_start(hook: str, fit: Any, tmp_path: Path) -> None:
    """Refused in a hook, then started again: all of its 8 steps are in the table and in TensorBoard's files."""

    def refuse() -> None:
        raise ValueError("refused")

    run = fit(tmp_path, Act(hook, act=refuse), **RUN)
    assert str(run.error) == "refused"
    run.trainer.fit(run.module, datamodule=run.trainer.datamodule)
    assert events(tmp_path, "train/loss") == list(column(tmp_path, "train/loss")) == list(range(1, 9))


# case: B7
@pytest.mark.slow
def test_validate_logs_at_the_step_of_the_checkpoint_once(fit: Any, tmp_path: Path) -> None:
    """Without validation in training: `validate` of step 3's checkpoint adds a point at 3, and not a second one."""
    run = tmp_path / "run"
    fit(run, val_every_n_steps=None, limit_val_batches=0, **RUN)
    for _ in range(2):
        again = fit(run, **RUN)  # makes no step
        checkpoint = str(run / "checkpoints" / "step-0000003.ckpt")
        again.trainer.validate(again.module, datamodule=again.trainer.datamodule, ckpt_path=checkpoint)
        assert events(run, "val/loss") == list(column(run, "val/loss")) == [3]
    fit(tmp_path / "other", **RUN | {"max_steps": 2})
    other = str(tmp_path / "other" / "checkpoints" / "last.ckpt")  # its values are none of this run
    again.trainer.validate(again.module, datamodule=again.trainer.datamodule, ckpt_path=other)
    assert events(run, "val/loss") == list(column(run, "val/loss")) == [3]
    assert list(column(run, "train/loss")) == list(range(1, 9))


# case: A6
@pytest.mark.slow
def test_a_csv_logger_from_python_goes_on_in_its_folder(fit: Any, tmp_path: Path) -> None:
    """Lightning's default makes version_0, then version_1. Stopped at step 5 and resumed: all 8 steps in version_0, of
    two loggers with different versions too, and the table of the run has them. A new run makes the next version."""
    run, options = tmp_path / "run", {name: value for name, value in RUN.items() if "checkpoint" not in name}
    (run / "own" / "version_3").mkdir(parents=True)

    def loggers() -> list[CSVLogger]:
        return [CSVLogger(run), CSVLogger(run, name="own")]

    for steps in (5, 8):
        fit(run, **{**options, "logger": loggers(), "max_steps": steps})
    folders = (run, run / "lightning_logs" / "version_0", run / "own" / "version_4")
    for folder in folders:
        assert list(column(folder, "train/loss")) == list(range(1, 9))
    fit(run, **{**options, "logger": loggers(), "max_steps": 1, "ckpt_path": None})
    assert [len(column(folder, "train/loss")) for folder in folders] == [1, 8, 8]
    assert len(column(run / "lightning_logs" / "version_1", "train/loss")) == 1


def test_another_fit_of_the_same_trainer_adds_to_its_curves(make_run: Any) -> None:
    """4 steps, then an epoch more: 8 steps in the table, in events and the ledger; the best stays the best."""
    run = make_run(max_epochs=1, keep_best="min:val/loss").fit()
    best = (run.folder / "checkpoints" / "best.ckpt").stat().st_mtime_ns
    run.trainer.fit_loop.max_epochs = 2
    run.module.learning_rate = 1.0  # whose validation is worse
    run.fit()
    assert list(column(run.folder, "train/loss")) == events(run.folder, "train/loss") == list(range(1, 9))
    assert sorted(set(read_ledger(run.folder / "ledger.parquet")["step"].to_pylist())) == list(range(1, 9))
    assert (run.folder / "checkpoints" / "best.ckpt").stat().st_mtime_ns == best


@pytest.mark.parametrize(("interval", "logged"), [(3, [3, 6, 8]), (50, [8]), (0, [])])
def test_the_last_step_ends_an_interval(fit: Any, tmp_path: Path, interval: int, logged: list[int]) -> None:
    """2 epochs of 4 steps. Without an interval before it, step 8 has the mean over all loss tokens of both epochs."""
    run = fit(tmp_path, **RUN | {"log_every_n_steps": interval, "accumulate_grad_batches": 2})
    assert [step for step, _ in run.diary.logged] == logged
    assert (events(tmp_path, "train/loss"), list(column(tmp_path, "train/loss"))) == (logged, logged)
    if logged == [8]:
        [report] = [report for name, report in run.trainer.datamodule.reports.items() if name.startswith("train")]
        total = sum(run.diary.losses) * run.module.nominal_count * 2  # which training_step and Lightning divide by
        assert run.diary.logged[0][1]["train/loss"] == pytest.approx(total / (2 * report.loss_tokens))
