"""AGENTS.md holds: a program that follows it gets from a CSV file to a verdict."""

import csv
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from smollit.main import main
from tests.conftest import ROOT, SAMPLES

TEXT = (ROOT / "AGENTS.md").read_text(encoding="utf-8")
SMALL = {
    "model": {"num_warmup_steps": 2, "learning_rate": 1e-3},
    "data": {"max_length": 128, "train_batch_size": 4, "num_workers": 0, "num_proc": 1},
    "trainer": {"precision": "32-true", "accelerator": "cpu", "devices": 1, "accumulate_grad_batches": 1},
}


def block(language: str) -> str:
    """The only block of this language."""
    (found,) = re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)
    return str(found)


def write_inputs(model: Path, cache_dir: Path) -> None:
    """A CSV of 40 pairs, and own.yaml as the page has it, with a tiny model."""
    rows = [json.loads(line) for line in (SAMPLES / "ultrafeedback/train_prefs.jsonl").read_text().splitlines()[:40]]
    with Path("pairs.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "chosen", "rejected"])
        writer.writerows([row["prompt"], row["chosen"][1]["content"], row["rejected"][1]["content"]] for row in rows)
    own: dict[str, Any] = yaml.safe_load(block("yaml"))
    own["model"]["init_args"] |= {"model_name": str(model)} | SMALL["model"]
    own["data"]["init_args"] |= {"cache_dir": str(cache_dir)} | SMALL["data"]
    own["trainer"] |= {"val_every_n_steps": 3} | SMALL["trainer"]
    Path("own.yaml").write_text(yaml.safe_dump(own))


def run(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and standard output of a command."""
    capsys.readouterr()
    code = 0
    try:
        main(words)
    except SystemExit as stopped:
        code = int(stopped.code or 0) if not isinstance(stopped.code, str) else 1
    return code, capsys.readouterr().out


# promise: agents
@pytest.mark.slow
def test_six_commands_lead_from_a_csv_to_a_verdict(
    tiny_model: Path,
    cache_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each ends with 0; JSON is where the page says; the verdict is about the 36 pairs. A wrong setting ends with 2."""
    monkeypatch.chdir(tmp_path)
    write_inputs(tiny_model, cache_dir)
    commands = [shlex.split(line)[3:] for line in block("bash").splitlines()]
    assert len(commands) == 6 and len({words[0] for words in commands}) == 6
    printed = {}
    for words in commands:
        code, printed[words[0]] = run(words, capsys)
        assert code == 0, words
    assert {check["state"] for check in json.loads(printed["doctor"])} <= {"ok", "note"}
    assert json.loads(Path("inspect.json").read_text())
    assert json.loads(Path("estimate.json").read_text())["epoch"]["run_steps"] == 9
    (report,) = json.loads(printed["report"])
    assert "learned" in {finding["rule"] for finding in report["findings"]}
    assert set(report["rows"]) == {"never_learned", "forgotten", "fought_over", "likely_mislabelled"}
    assert run([*commands[4], "--trainer.max_steps", "many"], capsys)[0] == 2
    assert run(["report", "runs/none", "--json"], capsys)[0] == 1


def test_the_pages_names_every_command_with_json() -> None:
    """Commands that take `--json`, by their settings, are those in the table."""
    frozen = (ROOT / "tests/settings.txt").read_text().splitlines()
    takes = {line.split()[0] for line in frozen if re.match(r"\w+ --json:", line)}
    table = TEXT.partition("## Output for programs")[2].partition("With `--json`")[0]
    assert takes - {"drill"} == set(re.findall(r"`(\w+)`(?=[^|]*\| `--json)", table))
