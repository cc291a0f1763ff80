"""SmollitTrainer: what a run shows at its start, its strategies by name, and what other commands measure."""

import threading
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader

from smollit.training import SmollitTrainer
from smollit.training.checkpoints.saving import AtomicCheckpointIO
from smollit.training.checkpoints.state import RunState
from smollit.training.stop import GracefulStop
from smollit.training.validation import ValidateEverySteps

SUMMARY = ("parameters", "weights", "mode", "attention", "precision")
SUMMARY += ("data", "batch", "steps", "learning rate", "run folder")


# case: ux-02
def test_start_summary_has_ten_lines(fit: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Batch 2 x 2 accumulated x 1 device = 4 rows; 1 epoch of 13 rows is 4 steps; all parameters are trained."""
    run = fit(tmp_path, max_epochs=1)
    shown = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines() if line.startswith(SUMMARY))
    found = {name.strip(): value.strip() for name, value in shown.items()}
    assert tuple(found) == SUMMARY
    total = sum(parameter.numel() for parameter in run.module.policy.parameters())
    assert found["parameters"] == f"{total:,} trainable of {total:,}"
    assert found["batch"] == "2 x 2 accumulated x 1 devices = 4 per step"
    assert found["steps"] == "4, from step 0"
    assert found["mode"] == "train" and found["weights"] == "float32" and found["precision"] == "32-true"
    assert found["data"].startswith("13 rows, ") and found["data"].endswith("% loss tokens")
    assert found["learning rate"] == "peak 0.001, Linear, 0 warm-up steps"
    assert found["run folder"] == str(tmp_path)


# case: data-09
def test_max_length_above_the_positions_is_refused(fit: Any, tmp_path: Path) -> None:
    """The tiny model's positions + 1: both numbers are named before the first step."""
    from transformers import AutoConfig

    positions = AutoConfig.from_pretrained(Path(__file__).parents[2] / "smollit/models/tiny").max_position_embeddings
    run = fit(tmp_path, data={"max_length": positions + 1})
    assert isinstance(run.error, ValueError) and run.steps == []
    assert f"{positions + 1:,}" in str(run.error) and f"{positions:,} positions" in str(run.error)


# case: cli-10
def test_built_in_callbacks_cannot_be_replaced(fit: Any, tmp_path: Path) -> None:
    """Whatever the list of callbacks holds, ours are there; GracefulStop stands after the user's."""
    for given in ([], [EarlyStopping("val/loss")]):
        callbacks = fit(tmp_path, *given, max_steps=1, ckpt_path=None).trainer.callbacks
        kinds = [type(callback) for callback in callbacks]
        assert {RunState, ValidateEverySteps, GracefulStop} <= set(kinds)
        assert not given or kinds.index(EarlyStopping) < kinds.index(GracefulStop)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_commands_come_in_any_order(kind: str, make_run: Any) -> None:
    """Validated, trained and validated by one trainer: the loss of a new trainer that trains alone."""
    run, alone = (make_run(kind=kind, folder=folder, max_steps=2) for folder in ("run", "alone"))
    first = run.trainer.validate(run.module, datamodule=run.data)
    alone.fit()
    run.fit()
    assert run.trainer.callback_metrics["train/loss"] == alone.trainer.callback_metrics["train/loss"]
    last = run.trainer.validate(run.module, datamodule=run.data)
    assert last[0]["val/loss"] < first[0]["val/loss"] and (first[0]["step"], last[0]["step"]) == (0, 2)


def test_callbacks_and_loaders_may_come_late_and_several(make_run: Any, tmp_path: Path) -> None:
    """A ModelCheckpoint that is appended to a made trainer saves. Two validation loaders without names are one set."""
    run = make_run(max_steps=1)
    run.trainer.callbacks.append(ModelCheckpoint(tmp_path, "mine"))
    run.fit()
    assert (tmp_path / "mine.ckpt").is_file()
    batches = list(run.data.val_dataloader())
    whole = run.trainer.validate(run.module, DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    loaders = [DataLoader([batch], batch_size=None) for batch in batches]  # type: ignore[list-item]
    parts = run.trainer.validate(run.module, loaders)
    assert len(batches) == 2 and parts[-1]["val/loss"] == pytest.approx(whole[0]["val/loss"])


@pytest.mark.parametrize("strategy", ["auto", "ddp", "fsdp2", DDPStrategy()])
def test_every_strategy_writes_whole_files_and_a_writer_of_ones_own_is_kept(tmp_path: Path, strategy: Any) -> None:
    """By name or as an object, the writer is ours; a plugin that the user gives stays."""
    options: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "logger": False}
    trainer = SmollitTrainer(str(tmp_path), strategy=strategy, **options)
    assert isinstance(trainer.strategy.checkpoint_io, AtomicCheckpointIO)
    own = AtomicCheckpointIO()
    assert SmollitTrainer(str(tmp_path), plugins=[own], **options).strategy.checkpoint_io is own


def test_no_checkpoints_on_request(fit: Any, tmp_path: Path) -> None:
    """enable_checkpointing false: nothing is written."""
    fit(tmp_path, max_steps=1, enable_checkpointing=False, checkpoint_every_n_steps=1)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.slow
def test_validate_measures_the_newest_checkpoint(fit: Any, tmp_path: Path) -> None:
    """After training, `last` gives another loss than the model as it is; without a checkpoint it is an error."""
    run = fit(tmp_path, max_epochs=1)
    trained = run.trainer.validate(run.module, datamodule=run.trainer.datamodule, ckpt_path="last", verbose=False)
    fresh = fit(tmp_path / "fresh", max_steps=0)
    loss = fresh.trainer.validate(fresh.module, datamodule=fresh.trainer.datamodule, verbose=False)[0]["val/loss"]
    assert trained[0]["val/loss"] < loss
    with pytest.raises(ValueError, match="there is no `last` checkpoint in"):
        fresh.trainer.validate(fresh.module, datamodule=fresh.trainer.datamodule, ckpt_path="last")
    with pytest.raises(ValueError, match="no such file"):
        fresh.trainer.test(fresh.module, datamodule=fresh.trainer.datamodule, ckpt_path="nope.ckpt")


def test_new_run_over_an_old_one_is_warned_of(fit: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """ckpt_path null in a folder with checkpoints starts a new run, and logs that it replaces them."""
    fit(tmp_path, max_steps=1)
    with caplog.at_level("WARNING", logger="smollit"):
        assert fit(tmp_path, max_steps=1, ckpt_path=None).steps[0][0] == 1
    assert "checkpoints of an earlier run" in caplog.text


def test_lightnings_advertisement_is_not_shown(
    fit: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    """No tip for another product, no advice on workers, no word of torch names that will go."""
    fit(tmp_path, max_steps=1)
    said = caplog.text + "".join(str(warning.message) for warning in recwarn)
    assert "litlogger" not in said


def test_training_outside_the_main_thread_works(fit: Any, tmp_path: Path) -> None:
    """Signals belong to the main thread: elsewhere they are left alone."""
    runs: list[Any] = []
    thread = threading.Thread(target=lambda: runs.append(fit(tmp_path, max_steps=1)))
    thread.start()
    thread.join()
    assert runs[0].error is None and runs[0].trainer.global_step == 1


# promise: with-effect
# case: D5
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"keep_checkpoints": 3}, "`trainer.keep_checkpoints` has no effect without `checkpoint_every_n_steps`"),
        ({"check_val_every_n_epoch": 2}, "`trainer.check_val_every_n_epoch` has no effect with `val_every_n_steps`"),
        ({"val_check_interval": 0.5}, "`trainer.val_check_interval` has no effect with `val_every_n_steps`"),
        ({"accumulate_grad_batches": 0}, "`trainer.accumulate_grad_batches` must be at least 1, got 0"),
    ],
)
def test_settings_without_effect_are_refused(options: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        SmollitTrainer(str(tmp_path), val_every_n_steps=2, **options)


# case: A8
@pytest.mark.slow
def test_time_alone_ends_a_run_and_zero_never_logs(fit: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A run of one second: the number of steps is unknown, so the rate stays at its peak; validated at its end."""
    options = {"max_epochs": None, "max_time": "00:00:00:01", "logger": True}
    run = fit(tmp_path, **options, log_every_n_steps=0, val_every_n_steps=10**6)
    assert run.error is None and run.trainer.global_step > 0
    assert {rate for _, _, rate in run.steps} == {1e-3}
    assert run.diary.logged == [] and run.diary.validated == [run.trainer.global_step]
    with caplog.at_level("INFO", logger="smollit"):
        assert fit(tmp_path, **options).steps == []
    assert "`max_epochs` or `max_time` asks for no more" in caplog.text
