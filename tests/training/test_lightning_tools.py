"""Lightning's own callbacks inside a run of smollit, with no flag set by the user."""

import csv
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from smollit.modules import SFTModule
from smollit.training.checkpoints.files import find_checkpoint


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


def test_the_wait_count_of_early_stopping_is_resumed(fit: Any, tmp_path: Path) -> None:
    """Ended at step 4 with one validation that was not better: the next one, at step 6, is the second."""
    options = EIGHT_STEPS | {"max_epochs": None, "module_class": NeverBetter}
    fit(tmp_path, EarlyStopping("val/loss", patience=2), max_steps=4, **options)
    resumed = fit(tmp_path, EarlyStopping("val/loss", patience=2), max_steps=16, **options)
    assert resumed.trainer.global_step == 6


# case: A2
def test_model_checkpoint_pairs_each_file_with_the_value_of_its_own_step(fit: Any, tmp_path: Path) -> None:
    """val/loss 7.2, 6.8, 6.4 at steps 2, 4, 6: three files with just these pairs; the top 1 is step 6's."""
    options = EIGHT_STEPS | {"max_epochs": None, "max_steps": 6, "module_class": Scripted}
    for folder, top_k in (("all", -1), ("best", 1)):
        keep = ModelCheckpoint(tmp_path / folder, "{step}-{val/loss:.1f}", monitor="val/loss", save_top_k=top_k,
                               auto_insert_metric_name=False)  # fmt: skip
        run = fit(tmp_path / folder, keep, **options)
        assert run.error is None
        assert find_checkpoint("best", run.trainer.checkpoint_folder) == tmp_path / folder / "6-6.4.ckpt"
    files = {
        path.name: torch.load(path, weights_only=True)["global_step"] for path in (tmp_path / "all").glob("*.ckpt")
    }
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
