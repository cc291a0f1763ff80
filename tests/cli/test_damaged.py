"""Files of a run folder that a fault of a disk, or an edit, has damaged: each is named in a sentence."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from smollit.main import main

Fails = Callable[..., tuple[int, str]]
WHOLE = {
    "metrics.csv": "step,train/loss,val/loss\n1,2.5,\n2,2.25,2.0\n4,2.0,1.5\n",
    "config.yaml": "model: {class_path: smollit.modules.SFTModule}\n",
    "data_report.json": json.dumps({"train": {"kept": 4, "truncated": 1}, "val": {"kept": 2, "truncated": 0}}),
    "environment.json": json.dumps([{"step": 0, "torch": "2.13.0"}]),
}
DAMAGED = {"empty": b"", "not text": b"\xff\xfe\x00", "cut": b'{"train": [1, {"st', "of another kind": b"[1]\n2\n"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run folder with the files that the commands on folders read."""
    run = tmp_path / "run"
    run.mkdir()
    for name, text in WHOLE.items():
        (run / name).write_text(text)
    return run


@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.parametrize(
    ("file", "command"),
    [("metrics.csv", "report"), ("config.yaml", "report"), ("data_report.json", "report"), ("ledger.parquet", "report"),
     ("metrics.csv", "diff"), ("config.yaml", "diff"), ("data_report.json", "diff"), ("environment.json", "diff")],
)  # fmt: skip
def test_a_damaged_file_of_a_run_is_named(file: str, command: str, damage: str, folder: Path, fails: Fails) -> None:
    """`report --rows` also reads the ledger, and `diff`, here of a run with itself, environment.json."""
    words = [command, str(folder), "--rows" if command == "report" else str(folder)]
    (folder / file).write_bytes(DAMAGED[damage])
    code, said = fails(*words)
    assert code == 1 and said.startswith("smollit: ") and "\n" not in said
    if file != "metrics.csv" or damage not in ("empty", "cut"):  # a line may be incomplete: then nothing was logged
        assert f"{folder / file} can't be read (" in said and "put a whole copy in its place" in said


@pytest.mark.slow
@pytest.mark.parametrize("file", ["metrics.csv", "ledger.parquet"])
def test_a_run_does_not_resume_over_a_damaged_file(
    file: str, write: Callable[..., str], fails: Fails, tmp_path: Path
) -> None:
    """It would lose what the file held. Moved away, as the sentence says, the run goes on from step 1."""
    main(["fit", write(trainer={"max_steps": 1})])
    (tmp_path / "run" / file).write_bytes(b"\xff\xfe\x00")
    words = ["fit", write(), "--ckpt_path=last"]
    code, said = fails(*words)
    assert code == 1 and f"{tmp_path / 'run' / file} can't be read" in said and "or move it away" in said
    (tmp_path / "run" / file).unlink()
    assert main(words).trainer.global_step == 2  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "expected settings, such as `model`, got none"),
        (b"- a\n- b\n", "expected settings, such as `model`, got"),
        (b"\xff\xfe", "the file is not a text in UTF-8"),
    ],
)
def test_a_config_without_settings_is_named(content: bytes, expected: str, fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(content)
    code, said = fails("fit", "--config", str(tmp_path / "x.yaml"))
    assert code == 2 and said.startswith(f"smollit: `config`: {expected}") and "x.yaml" in said


def test_a_section_without_settings_has_its_defaults(write: Callable[..., str], tiny_model: Path) -> None:
    """`trainer:` and `init_args:` with nothing below them, where all are comments, and settings on the command line."""
    path = Path(write().removeprefix("--config="))
    data = path.read_text().partition("model:")[0]
    model = "model:\n  class_path: SFTModule\n  init_args:\n    # learning_rate: 1e-3\n"
    path.write_text(f"{data}{model}trainer:\n  # max_steps: 100\n")
    words = ["--trainer.max_steps=1", "--trainer.accelerator=cpu", f"--model.model_name={tiny_model}"]
    cli = main(["estimate", f"--config={path}", *words])
    assert cli.config.trainer.max_steps == 1  # type: ignore[union-attr]


def test_a_config_or_a_run_folder_without_its_flag_gets_it(
    write: Callable[..., str], fails: Fails, folder: Path
) -> None:
    file = write().removeprefix("--config=")
    for word, config in ((file, file), (str(folder), folder / "config.yaml")):
        code, said = fails("export", word)
        assert code == 2 and f"`{word}` stands without a flag: write --config {config}" in said
