"""switches.py: what it compares, its arithmetic, all of it on a tiny model; gpu.sh, as far as it goes without one."""

import importlib
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
Start = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module("switches")
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture
def in_process(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Start:
    """The children's work, here: a process for each would take seconds to import."""
    run = importlib.import_module("compare.switch").run

    def start(module: str, job: dict[str, Any], **environment: str) -> dict[str, Any]:
        return run(json.loads(json.dumps(job)))

    monkeypatch.setattr(script.child, "start", start)
    return start


def test_a_difference_is_relative_to_the_plain_path(script: ModuleType) -> None:
    """2.5 against 2 is 0.25 apart, 3 against 4 as much."""
    found = script.judge({"loss": 2.5, "gradient_norm": 3.0}, {"loss": 2.0, "gradient_norm": 4.0}, 0.25)
    assert found["loss_difference"] == found["gradient_norm_difference"] == 0.25
    assert found["agrees"]


@pytest.mark.parametrize("norm", [4.0001, 3.9999, math.nan, math.inf])
def test_either_figure_alone_can_differ(script: ModuleType, norm: float) -> None:
    """0.0001 / 4 = 2.5e-5 is above 1e-5; NaN is never equal."""
    plain = {"loss": 2.0, "gradient_norm": 4.0}
    assert not script.judge({"loss": 2.0, "gradient_norm": norm}, plain, 1e-5)["agrees"]
    assert not script.judge({"loss": norm / 2, "gradient_norm": 4.0}, plain, 1e-5)["agrees"]


def test_weights_that_differ_do_not_agree(script: ModuleType) -> None:
    """Loss and norm of the step before may be equal."""
    plain = {"loss": 2.0, "gradient_norm": 4.0}
    assert not script.judge(plain | {"weights_difference": 2e-5}, plain, 1e-5)["agrees"]


def test_weights_are_compared_as_one_vector(script: ModuleType, tmp_path: Path) -> None:
    """(3, 4) and (3, 4.5): 0.5 / 5 = 0.1."""
    torch.save({"a": torch.tensor([3.0]), "b": torch.tensor([4.5])}, tmp_path / "ours.pt")
    torch.save({"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}, tmp_path / "plain.pt")
    assert script.weights_difference(tmp_path / "ours.pt", tmp_path / "plain.pt") == pytest.approx(0.1)


def test_rows_are_spread_over_the_shortest_quarter(script: ModuleType) -> None:
    """Of 40 rows the quarter is 0..9: the rows 0, 3, 6, 9. Of 6 the shortest four."""
    assert [row for _, row in script.spread([(length, length) for length in range(40)])] == [0, 3, 6, 9]
    assert [row for _, row in script.spread([(length, length) for length in range(6)])] == [0, 1, 2, 3]


def test_a_switch_changes_only_what_it_names(script: ModuleType) -> None:
    """`compile` leaves attention, batches and chunks as in the plain path."""
    plain = script.make_job(script.Switch(), {})
    compiled = script.make_job(script.switches("sft", "cpu", 100)["compile"], {})
    assert compiled["model"] == plain["model"] | {"compile": True}
    assert (compiled["data"], compiled["trainer"]) == (plain["data"], plain["trainer"])


def test_switches_that_a_machine_or_task_lacks_are_left_out(script: ModuleType) -> None:
    """FlexAttention needs a GPU; a chat has no reference."""
    assert set(script.switches("dpo", "cpu", 9)) - set(script.switches("sft", "cpu", 9)) == {"offloaded", "precomputed"}
    assert set(script.switches("sft", "cuda", 9)) - set(script.switches("sft", "cpu", 9)) == {"flex", "packing, flex"}
    with pytest.raises(ValueError, match="there is no switch"):
        script.choose(script.switches("sft", "cpu", 9), ["flex"])


@pytest.mark.parametrize("task", ["sft", "dpo"])
def test_switches_agree_on_a_tiny_model(
    script: ModuleType, in_process: Start, tiny_model: Path, tmp_path: Path, task: str
) -> None:
    """Four micro-batches of one row; two or three of at most twice the longest row; one of packed rows."""
    only = ["documents", "packing, documents", "batch tokens", "4 micro-batches", "by length", "fused", "together"]
    only += ["offloaded", "precomputed"] * (task == "dpo")
    file = tmp_path / "found.json"
    options = ["--task", task, "--model", str(tiny_model), "--max_length", "1024", "--json", str(file)]
    assert script.main([*options, "--only", *only]) == 0
    found = json.loads(file.read_text())["switches"]
    assert set(found) == {"plain", *only}
    assert found["plain"]["loss"] == pytest.approx(math.log(2048) + (math.log(2) if task == "dpo" else 0), rel=0.1)
    counts = {name: figures["micro_batches"] for name, figures in found.items()}
    assert (counts["plain"], counts["packing, documents"], counts["by length"], counts["4 micro-batches"]) == (
        1,
        1,
        2,
        4,
    )
    assert counts["batch tokens"] in (2, 3)
    assert found["fused"]["weights_difference"] < 1e-6


def test_a_switch_that_differs_or_fails_is_named(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The loss of `documents` is 2e-5 off, `eager` does not run, and `compile` still does."""

    def start(module: str, job: dict[str, Any], **environment: str) -> dict[str, Any]:
        if job["model"]["attention"] == "eager":
            raise RuntimeError("no such kernel")
        loss = 2.00004 if job["model"]["attention"] == "documents" else 2.0
        return {"loss": loss, "gradient_norm": 1.0, "micro_batches": 1, "seconds": 1.0, "peak_memory": 1}

    monkeypatch.setattr(script.child, "start", start)
    assert script.main(["--only", "documents", "eager", "compile"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.endswith("DIFFERS")] == ["documents"]
    assert any(line.startswith("compile") for line in lines)
    assert lines[-1] == "FAILED: eager: no such kernel"


def test_nothing_is_compared_without_a_plain_path(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All else would have nothing to be compared with."""

    def start(module: str, job: dict[str, Any], **environment: str) -> dict[str, Any]:
        raise RuntimeError("no memory")

    monkeypatch.setattr(script.child, "start", start)
    assert script.main(["--only", "documents"]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "FAILED: plain: no memory"


def test_gpu_goes_on_after_steps_that_fail_and_counts_them(tmp_path: Path) -> None:
    """With `false` as Python: about, tests, make-135M, and switches in fp32 and bf16: 5."""
    command = ["bash", str(BENCHMARKS / "gpu.sh"), "--out", str(tmp_path / "out"), "--python", "false"]
    done = subprocess.run([*command, "--parts", "tests switches-sft"], capture_output=True, text=True, check=False)
    assert done.returncode == 5, done.stdout + done.stderr
    named = [line.split()[1] for line in (tmp_path / "out" / "failed.txt").read_text().splitlines()]
    assert named == ["about", "tests", "make-135M", "switches-sft-fp32", "switches-sft-bf16"]


def test_gpu_gives_each_comparison_its_model_and_keeps_its_json(tmp_path: Path) -> None:
    """With a stand-in for Python that prints a line of JSON, then a warning."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$@" >&2\necho \'{"a": 1}\'\necho "a warning" >&2\n')
    python.chmod(0o755)
    out = tmp_path / "out"
    command = ["bash", str(BENCHMARKS / "gpu.sh"), "--out", str(out), "--python", str(python), "--data", "rows"]
    command += ["--model-1.7b", "real", "--parts", "compare-135m compare-1.7b"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("sft-135M", "dpo-135M", "sft-1.7B", "dpo-1.7B"):
        assert json.loads((out / f"{name}.json").read_text()) == {"a": 1}
    ran = [line for line in done.stdout.splitlines() if line.startswith("benchmarks/compare_trl.py")]
    assert "--task sft" in ran[0] and "/135M --data rows" in ran[0]
    assert "--task dpo --model real --data rows --json" in ran[3]


def test_gpu_says_what_is_missing() -> None:
    """An unknown option, and no folder for what comes out."""
    command = ["bash", str(BENCHMARKS / "gpu.sh")]
    done = subprocess.run([*command, "--wheel", "x"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "unknown option --wheel" in done.stderr
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={"PATH": "/usr/bin:/bin"})
    assert done.returncode == 2 and "--out" in done.stderr
