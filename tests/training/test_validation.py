"""A validation that a stop left out is made first by the run that resumes, with its samples."""

import csv
import json
import signal
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks import SampleGenerations
from tests.training.conftest import Act, ctrl_c, sigterm


def kill() -> None:
    raise SystemExit(128 + signal.SIGKILL)  # nothing is saved at this: the run resumes from a periodic checkpoint


BREAKS = {
    "in a validation": ("on_validation_batch_start", 4, sigterm),
    "in the step before": ("on_after_backward", 3, ctrl_c),
    "killed before it": ("on_validation_start", 4, kill),
    "killed after it": ("on_train_batch_start", 4, kill),
    "in the last one": ("on_validation_batch_start", 6, sigterm),
    "killed before the last one": ("on_validation_start", 6, kill),
    "killed after the last one": ("on_train_end", 6, kill),
}


def recorded(folder: Path) -> tuple[list[Any], list[Any], list[Any]]:
    """(step, val/loss) in metrics.csv and in TensorBoard, and the samples."""
    table = list(csv.DictReader((folder / "metrics.csv").open()))
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    in_table = [(int(row["step"]), float(row["val/loss"])) for row in table if row.get("val/loss")]
    return in_table, [(event.step, event.value) for event in events.Scalars("val/loss")], samples


# promise: due-validation
# case: B6
@pytest.mark.parametrize("name", BREAKS)
@pytest.mark.slow
def test_a_due_validation_is_made_up(name: str, fit: Any, tmp_path: Path) -> None:
    """6 steps, validated and saved at 2, 4 and 6: the metrics, the samples and EarlyStopping's count are those of a run
    that was never stopped, each once; then nothing is left to do."""
    hook, step, act = BREAKS[name]
    found = []
    for folder, breaks in ((tmp_path / "whole", []), (tmp_path / "broken", [(hook, step, act)])):
        options: dict[str, Any] = {"max_epochs": -1, "max_steps": 6, "checkpoint_every_n_steps": 2}
        for is_broken in [True] * len(breaks) + [False]:
            loggers = [CSVLogger(str(folder), name="", version=""), TensorBoardLogger(str(folder), name="", version="")]
            stop = EarlyStopping("val/loss", patience=5, min_delta=10.0)
            callbacks = [SampleGenerations(["Hello"], max_new_tokens=2), stop]
            if is_broken:
                callbacks.append(Act(hook, lambda trainer, step=step: trainer.global_step == step, act))
            run = fit(folder, *callbacks, logger=loggers, **options)
            assert isinstance(run.error, SystemExit) if is_broken else run.error is None
        found.append((recorded(folder), stop.wait_count, run.trainer.global_step))
        assert [step for step, _ in found[-1][0][0]] == [2, 4, 6]
        again = fit(folder, logger=False, **options)
        assert (again.steps, again.diary.validated) == ([], [])
    assert found[0] == found[1]


def test_validate_without_a_split_is_refused(fit: Any, tmp_path: Path) -> None:
    """`fit` runs without validation; `validate` has nothing else to do, and said nothing."""
    run = fit(tmp_path, data={"val_split": None}, max_epochs=None, max_steps=1, val_every_n_steps=None)
    assert run.error is None
    with pytest.raises(ValueError, match="there is no split to validate"):
        run.trainer.validate(run.module, datamodule=run.trainer.datamodule)
