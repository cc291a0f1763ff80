"""`trainer.keep_best`: one file with the best validation, whatever else is kept; `best` is a path."""

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from smollit.modules import SFTModule
from tests.training.conftest import stop_at


def measured(values: dict[int, float], name: str = "val/loss") -> type[SFTModule]:
    """A module whose validations measure these values, by step."""

    class Measured(SFTModule):
        def report(self, named: dict[str, Any]) -> None:
            step = self.trainer.global_step
            super().report(named | ({name: values[step]} if name in named and step in values else {}))

    return Measured


def best(folder: Path) -> tuple[int, float]:
    """Step and value of best.ckpt."""
    checkpoint = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    return checkpoint["global_step"], checkpoint["best"]["value"]


# promise: best
# case: A3
@pytest.mark.parametrize(
    ("setting", "values", "expected"),
    [
        ("val/loss", {2: 7.2, 4: 6.5, 6: 6.8, 8: float("nan"), 10: 6.5, 12: 6.6}, (4, 6.5)),
        ("val/token_accuracy", {2: 0.1, 4: 0.3, 6: 0.3, 8: 0.2, 10: 0.2, 12: 0.2}, (4, 0.3)),
        ("max:val/loss", {2: 1.0, 4: 1.0, 6: 3.0, 8: 2.0, 10: 2.0, 12: 2.0}, (6, 3.0)),
    ],
)
@pytest.mark.slow
def test_the_best_validation_is_kept(
    setting: str, values: dict[int, float], expected: Any, fit: Any, tmp_path: Path
) -> None:
    """Smallest loss, largest accuracy, or as `max:` says; of equal ones the first, and never a NaN. Its weights are
    those of that step, though of the periodic files only the last one is kept."""
    module = measured(values, setting.removeprefix("max:"))
    options = {"checkpoint_every_n_steps": 2, "keep_checkpoints": 1, "model": {"schedule": "constant"}}
    run = fit(tmp_path, module_class=module, keep_best=setting, **options)
    assert run.error is None and best(tmp_path) == (expected[0], pytest.approx(expected[1]))
    files = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert files == ["best.ckpt", "last.ckpt", "step-0000012.ckpt"]
    same = fit(tmp_path / "again", max_steps=expected[0], **options)
    kept = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(kept[f"policy.{name}"], value) for name, value in same.weights.items())


# case: A3
@pytest.mark.slow
def test_the_best_survives_stops_copies_and_branches(
    fit: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Best at step 4, stopped at 6: the resumed run, in a copy of the folder, keeps it although step 8 is better than
    step 6. From step 2 on, the same folder begins another branch, whose first validation is its best; a run anew
    forgets both. `best` validates with the file's weights, without a callback, and says its step."""
    keep = {"keep_best": "val/loss", "checkpoint_every_n_steps": 2, "keep_checkpoints": 9}
    first = measured({2: 7.0, 4: 6.0, 6: 6.5, 8: 6.2, 10: 6.2, 12: 6.2})
    fit(tmp_path / "run", stop_at(6), module_class=first, **keep)
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    fit(tmp_path / "copy", module_class=first, **keep)
    assert best(tmp_path / "copy") == (4, 6.0)
    with caplog.at_level(logging.INFO, logger="smollit"):
        plain = fit(tmp_path / "copy", max_steps=12, model={"learning_rate": 1e-4})
        plain.trainer.validate(plain.module, datamodule=plain.trainer.datamodule, ckpt_path="best", verbose=False)
    assert "best.ckpt of step 4 (val/loss 6)" in caplog.text
    again = measured({2: 9.5} | dict.fromkeys((4, 6, 8, 10, 12), 9.0))
    path = tmp_path / "copy/checkpoints/step-0000002.ckpt"
    fit(tmp_path / "copy", module_class=again, ckpt_path=path, **keep)
    assert best(tmp_path / "copy") == (4, 9.0)
    fit(tmp_path / "copy", module_class=measured({2: 9.5}), ckpt_path=None, max_steps=2, **keep)
    assert best(tmp_path / "copy") == (2, 9.5)


# case: A3
@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("val/rewards/chosen", r"min:val/rewards/chosen or max:val/rewards/chosen, or take one of .*val/loss"),
        ("max:val/acuracy", "validation measures .*val/token_accuracy"),
        ("most:val/loss", "takes a metric such as val/loss"),
    ],
)
def test_a_metric_that_is_not_known_is_an_error(setting: str, text: str, fit: Any, tmp_path: Path) -> None:
    """A metric without a direction, one that nothing measures, and a misspelt direction."""
    with pytest.raises(ValueError, match=text):
        raise fit(tmp_path, keep_best=setting, max_steps=2).error


# case: A3
def test_a_run_does_not_resume_from_the_best(fit: Any, tmp_path: Path) -> None:
    """Its position is the past: the error names `last`, and `init_from` for a new run."""
    fit(tmp_path, keep_best="val/loss", max_steps=2)
    error = fit(tmp_path, ckpt_path="best").error
    assert isinstance(error, ValueError) and "`last`" in str(error) and "`model.init_from`" in str(error)
