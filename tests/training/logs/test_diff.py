"""`diff`: the first step at which two runs part, and the setting that did it."""

import json
from pathlib import Path
from typing import Any

import pytest

from smollit.main import main


def difference(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Exit code and output of `diff`."""
    capsys.readouterr()
    code = 0
    try:
        main(["diff", *words])
    except SystemExit as ended:
        code = int(ended.code or 0) if not isinstance(ended.code, str) else 1
    return code, capsys.readouterr().out


# promise: diff
@pytest.mark.slow
def test_the_first_step_that_differs_and_its_cause(
    fit: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A rate of 2e-3 instead of 1e-3 shows in the first step's rate, and in the loss of step 2, not of step 1. Runs of
    the same settings are equal, whatever their folders."""
    options = {"max_epochs": None, "max_steps": 3, "log_every_n_steps": 1, "logger": True, "val_every_n_steps": None}
    config = {"model": {"init_args": {"learning_rate": 1e-3}}, "trainer": {"default_root_dir": "a"}}
    for name, rate in (("one", 1e-3), ("same", 1e-3), ("other", 2e-3)):
        run = fit(tmp_path / name, model={"learning_rate": rate, "schedule": "constant"}, **options)
        assert run.error is None
        config["model"]["init_args"]["learning_rate"] = rate
        (tmp_path / name / "config.yaml").write_text(json.dumps(config | {"trainer": {"default_root_dir": name}}))
    one, same, other = (str(tmp_path / name) for name in ("one", "same", "other"))
    code, said = difference(capsys, one, same)
    assert code == 0 and said.startswith("equal in every step")
    code, said = difference(capsys, one, other)
    assert code == 1 and "from step 1 on" in said and "train/learning_rate: 0.001 and 0.002" in said
    assert "train/loss" not in said.split("settings:")[0]
    assert "model.learning_rate: 0.001 and 0.002" in said and "versions and device: no difference" in said
    found = json.loads(difference(capsys, one, other, "--json")[1])
    assert found["first_different_step"]["step"] == 1 and found["data"] == []


def test_what_is_no_run_is_said(tmp_path: Path) -> None:
    """One folder, and folders without metrics."""
    with pytest.raises(SystemExit, match="compares two run folders, got 1"):
        main(["diff", str(tmp_path)])
    with pytest.raises(SystemExit, match="is no run folder"):
        main(["diff", str(tmp_path), str(tmp_path)])
