"""`replay`: a step of a run made again to the bit, and each of its rows by itself."""

import json
from pathlib import Path
from typing import Any

import pytest

from smollit.main import main
from smollit.training.logs.table import read_table

SAMPLES = "smollit/data/samples"


def replayed(capsys: pytest.CaptureFixture[str], run: Path, *step: str) -> dict[str, Any]:
    capsys.readouterr()
    main(["replay", str(run), *step, "--json"])
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def fit_words(kind: str, data: str, model: Path, cache_dir: Path, run: Path) -> list[str]:
    """6 steps of 2 x 2 of 24 rows, each logged."""
    split = "train_sft" if kind == "SFT" else "train_prefs"
    words = ["fit", f"--model=smollit.modules.{kind}Module", f"--model.model_name={model}"]
    words += [f"--data=smollit.data.{data}DataModule", f"--data.dataset={SAMPLES}/{data.lower()}"]
    words += [f"--data.train_split={split}[:24]", "--data.val_split=null", "--data.train_batch_size=2"]
    words += ["--data.max_length=96", "--data.max_dropped_share=1", f"--data.cache_dir={cache_dir}"]
    words += ["--trainer.accelerator=cpu", "--trainer.max_steps=6", "--trainer.accumulate_grad_batches=2"]
    words += ["--trainer.log_every_n_steps=1", "--model.learning_rate=1e-3"]
    return [*words, f"--trainer.default_root_dir={run}"]


# promise: replay
@pytest.mark.slow
@pytest.mark.parametrize(("kind", "data"), [("SFT", "UltraChat"), ("DPO", "UltraFeedback")])
def test_a_step_is_made_again_to_the_bit(
    kind: str, data: str, tiny_model: Path, cache_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Steps 2 and 5, from the beginning and from the checkpoint of step 4: the metrics of the run in every digit. The
    losses of the 2 x 2 rows, weighted by loss tokens or pairs, have the logged mean; no file of the run changes."""
    words = [*fit_words(kind, data, tiny_model, cache_dir, tmp_path), "--trainer.checkpoint_every_n_steps=2"]
    words += ["--trainer.callbacks=callbacks.ExportHuggingFace"]
    words += ["--trainer.callbacks.ckpt_path=best", "--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint"]
    words += [f"--trainer.callbacks.dirpath={tmp_path / 'own'}", "--trainer.callbacks.every_n_train_steps=1"]
    words += ["--trainer.callbacks.monitor=step", "--trainer.callbacks.mode=max"]
    words += ["--trainer.callbacks+=lightning.pytorch.callbacks.LearningRateMonitor"]  # which needs a logger
    main(words)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for step in (2, 5):
        found = replayed(capsys, tmp_path, *([str(step)] if step == 2 else [f"--step={step}"]))
        (logged,) = [row for row in read_table(tmp_path / "metrics.csv") if row["step"] == str(step)]
        assert found["differing"] == [] and len(found["rows"]) == 4
        weights = [row["loss_tokens"] if kind == "SFT" else 1 for row in found["rows"]]
        mean = sum(w * row["loss"] for w, row in zip(weights, found["rows"], strict=True)) / sum(weights)
        assert mean == pytest.approx(float(logged["train/loss"]), rel=1e-5)
    for folder in (tmp_path, tmp_path / "checkpoints"):  # it would be removed afterwards
        with pytest.raises(SystemExit, match="holds files: give a folder that is empty or new"):
            main(["replay", str(tmp_path), "2", "--trainer.default_root_dir", str(folder)])
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit, match="ends before step 9: its last one is 6"):
        main(["replay", str(tmp_path), "9"])
    main([*words, "--ckpt_path=last", "--trainer.max_steps=8", "--model.learning_rate=2e-3"])
    assert replayed(capsys, tmp_path, "8")["differing"] == []  # with the settings of the start that made it


# promise: non-finite-dump
@pytest.mark.slow
def test_a_step_that_is_not_finite_is_dumped_and_made_again(
    tiny_model: Path, cache_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights of 1e30 after step 1: step 2 is not finite. The dump names it with its 2 x 2 rows and the settings, and
    no text; `replay RUN` makes it again with the same rows. A dump of other rows or another loss is found out."""
    words = fit_words("SFT", "UltraChat", tiny_model, cache_dir, tmp_path)
    with pytest.raises(SystemExit, match="step 2: loss"):
        main([*words, "--model.learning_rate=1e30"])
    path = tmp_path / "non_finite.json"
    dump = json.loads(path.read_text())
    assert (dump["step"], dump["learning_rate"], len(dump["rows"])) == (2, pytest.approx(1e30 * 5 / 6), 4)
    assert [row["micro_batch"] for row in dump["rows"]] == [0, 0, 1, 1] and "nan" in (
        dump["loss"],
        dump["gradient_norm"],
    )
    assert dump["settings"]["data"]["init_args"]["train_batch_size"] == 2
    texts = [
        turn["content"]
        for line in Path(SAMPLES, "ultrachat", "train_sft.jsonl").read_text().splitlines()[:24]
        for turn in json.loads(line)["messages"]
    ]
    assert not any(text in path.read_text() for text in texts)
    found = replayed(capsys, tmp_path)
    assert {row["row"] for row in found["rows"]} == {row["row"] for row in dump["rows"]} and found["differing"] == []
    assert found["metrics"] == {name: dump[name] for name in ("loss", "gradient_norm")}
    dump["rows"][0]["sha256"], dump["loss"], dump["gradient_norm"] = "0", 1.5, 2.5
    path.write_text(json.dumps(dump))
    with pytest.raises(SystemExit):
        main(["replay", str(tmp_path), "2", "--json"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["differing"] == ["gradient_norm", "loss", "rows"]
    (tmp_path / "metrics.csv").write_text("step,train/loss\n2,1.0\n")  # the run has made step 2 since
    with pytest.raises(SystemExit):
        main(["replay", str(tmp_path)])
    assert "Name one" in capsys.readouterr().err
