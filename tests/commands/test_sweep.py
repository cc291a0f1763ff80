"""`sweep`: which words are swept, and a sweep that is killed and goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from smollit.commands.sweep.command import Result, SweepCommand, show
from smollit.commands.sweep.grid import split_values, variants
from smollit.main import main
from smollit.modules import DPOModule, SFTModule
from smollit.training.logs.table import read_table


def test_values_between_commas_are_swept() -> None:
    """Two rates and two losses are four runs; brackets, quotes, words keep a value together; configs are not swept."""
    words = ["--config=a,b.yaml", "--model.learning_rate", "1e-6, 5e-6", "--model.loss=IPO,DPO", "--trainer.devices"]
    *kept, last = SweepCommand.words([*words, "[0,1]"])
    assert kept == ["--config=a,b.yaml", "--model.learning_rate", "1e-6", "--model.loss=IPO", *words[-1:], "[0,1]"]
    swept = json.loads(last.removeprefix("--swept="))
    names = [variant.name for variant in variants(swept)]
    assert names == [f"learning_rate-{rate}_loss-{loss}" for rate in ("1e-6", "5e-6") for loss in ("IPO", "DPO")]
    assert split_values("{a: 1, b: 2},'x,y',z") == ["{a: 1, b: 2}", "x,y", "z"]
    for text, kept_text in (
        ("Be kind, and short", "Be kind, and short"),
        ("'kind,short'", "kind,short"),
        ("'a'", "'a'"),
    ):
        assert SweepCommand.words(["--data.default_system", text]) == ["--data.default_system", kept_text]
    with pytest.raises(ValueError, match="empty or given twice: 1, , 2"):
        SweepCommand.words(["--model.loss.beta", "1,,2"])


@pytest.mark.slow
def test_what_cannot_be_swept_is_said_before_the_first_run(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The third value is no number: exit code 2 at once, and nothing was trained."""
    words = ["sweep", "--model=smollit.modules.SFTModule", f"--model.model_name={tiny_model}"]
    words += ["--data=smollit.data.UltraChatDataModule", f"--trainer.default_root_dir={tmp_path / 'run'}"]
    with pytest.raises(SystemExit, match="needs a setting with several values"):
        main(words)
    for more in (["--model.learning_rate", "1e-6,5e-6,fast"], ["--model.decay_all", "true,maybe"]):
        with pytest.raises(SystemExit) as stopped:
            main([*words, *more])
        assert stopped.value.code == 2
    assert "`model.decay_all`" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="`metric` is val/x, of which it is not known whether less or more is better"):
        main([*words, "--metric", "val/x", "--model.learning_rate", "1e-6,5e-6"])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("metric", "changes", "expected", "warns"),
    [
        (None, [{"loss": "DPO"}, {"loss": "Hinge"}], ("val/rewards/accuracies", "max"), True),
        (None, [{"reference_name": None}, {"reference_name": "B"}], ("val/rewards/accuracies", "max"), True),
        (None, [{"reference_name": "A"}, {"learning_rate": 1.0}], ("val/loss", "min"), False),
        ("val/loss", [{"loss": "DPO"}, {"loss": "Hinge"}], ("val/loss", "min"), True),
        ("max:val/logps/chosen", [{"loss": "DPO"}, {"loss": "Hinge"}], ("val/logps/chosen", "max"), False),
    ],
)
def test_losses_of_other_scales_do_not_rank(
    tiny_model: Path,
    caplog: pytest.LogCaptureFixture,
    metric: str | None,
    changes: list[dict[str, Any]],
    expected: tuple[str, str],
    warns: bool,
) -> None:
    """Another loss or reference of DPO: accuracies do, and it is said. SFT's metric is -log p, whatever the loss."""
    models = [{"model_name": "A"} | each for each in changes]
    assert SweepCommand(metric=metric).ranking(DPOModule(str(tiny_model)), models) == expected
    assert ("losses and margins do not compare" in caplog.text) is warns
    assert SweepCommand().ranking(SFTModule(str(tiny_model)), models) == ("val/loss", "min")


def test_runs_without_a_validation_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They ended well, with code 0, and nothing compares them; another failed."""
    show([Result("a", {}, 0), Result("b", {}, 1)], None, "val/loss", tmp_path)
    said = " ".join(capsys.readouterr().out.split())
    assert "not measured" in said and "ended with code 1" in said and "ended with code 0" not in said
    assert "val/loss was not measured: `trainer.val_every_n_steps` validates within a run" in said


# promise: sweep
@pytest.mark.slow
def test_a_killed_sweep_goes_on(tmp_path: Path, tiny_model: Path, cache_dir: Path) -> None:
    """Killed in the second of three runs: the first is not made again, the second resumes, the third is made. A rate of
    10 may fail, and has no value then; the best has the highest accuracy in the tables of the runs."""
    words = ["sweep", "--model=smollit.modules.DPOModule", f"--model.model_name={tiny_model}", "--json"]
    words += ["--data=smollit.data.UltraFeedbackDataModule", "--data.dataset=smollit/data/samples/ultrafeedback"]
    words += [
        "--data.train_split=train_prefs[:64]",
        "--data.val_split=test_prefs[:20]",
        f"--data.cache_dir={cache_dir}",
    ]
    words += ["--data.train_batch_size=2", "--data.max_length=96", "--trainer.accelerator=cpu"]
    words += ["--trainer.checkpoint_every_n_steps=2"]
    words += ["--trainer.val_every_n_steps=8", f"--trainer.default_root_dir={tmp_path}", "--trainer.max_epochs=1"]
    words += ["--model.learning_rate", "1e-9,3e-4,10", "--metric", "val/rewards/accuracies"]
    command = [sys.executable, "-m", "smollit", *words]
    folder = tmp_path / "sweep"
    second = folder / "learning_rate-3e-4"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as first:
        while len(read_table(second / "metrics.csv")) < 1:
            assert first.poll() is None
            time.sleep(0.05)
        first.send_signal(signal.SIGTERM)
        assert first.wait() == 143
    before = {path: os.stat(path).st_mtime_ns for path in (folder / "learning_rate-1e-9").rglob("*")}
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert before == {path: os.stat(path).st_mtime_ns for path in (folder / "learning_rate-1e-9").rglob("*")}
    found: dict[str, Any] = json.loads(done.stdout)
    assert "learning_rate-1e-9, has ended already" in done.stderr
    tables = {run["name"]: read_table(folder / run["name"] / "metrics.csv") for run in found["runs"]}
    reached = {name: max(float(row[found["metric"]] or 0) for row in rows) for name, rows in tables.items()}
    ended = {run["name"]: run["value"] for run in found["runs"] if run["exit_code"] == 0}
    assert {"learning_rate-1e-9", "learning_rate-3e-4"} <= set(ended)
    assert ended == {name: reached[name] for name in ended}
    assert all(run["value"] is None for run in found["runs"] if run["exit_code"])
    assert reached[found["best"]] == max(ended.values()) > 0.5
    low, high = next(run["interval"] for run in found["runs"] if run["name"] == found["best"])
    assert 0.5 < low <= reached[found["best"]] <= high
    page = (folder / "report.html").read_text()
    assert all(name in page for name in ended)
