"""benchmarks/gpu.sh: what it keeps and says, with a stand-in for Python; and, slowly, all of it on a CPU."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.conftest import BENCHMARKS, Script


def gpu(*words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run gpu.sh, with the Python of the tests unless `env` says otherwise."""
    command, environment = ["bash", str(BENCHMARKS / "gpu.sh"), *words], env or {**os.environ, "PYTHON": sys.executable}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


STAND_IN = """#!/bin/sh
case "$*" in
    *360M*) echo 'RESULT {"label": "sft 360M", "s/step": 0.5}'
        echo 'RESULT {"label": "dpo 360M", "failed": "no memory"}' ;;
    *gpu_step*) echo 'RESULT {"label": "sft 135M", "tokens/s": 1234.5}'; sleep 60 ;;
    *pytest*) echo "3 failed"; exit 1 ;;
esac
"""


# promise: gpu-report
@pytest.mark.slow
def test_gpu_keeps_what_a_part_has_said_when_its_time_is_over(tmp_path: Path) -> None:
    """With a stand-in for Python, and 2 seconds for all: the tests fail; one of two jobs fails; a part that measures
    one job and then hangs is stopped and keeps it; for the next no time is left. Three files, and four failed parts."""
    python, out = tmp_path / "python", tmp_path / "out"
    python.write_text(STAND_IN)
    python.chmod(0o755)
    words = ["--seconds", "2", "--model", "135M", "real", "--model", "360M", "360M"]
    words += ["--parts", "compile", "host-memory", "speed-360M", "tests"]
    done = gpu("--out", str(out), "--python", str(python), *words)
    assert done.returncode == 4, done.stdout + done.stderr
    assert sorted(path.name for path in out.iterdir()) == ["logs.tar.gz", "report.json", "report.md"]
    found = json.loads((out / "report.json").read_text())
    assert {name: part["code"] for name, part in found.items()} == {
        "tests": 1, "speed-360M": 1, "compile": 124, "host-memory": 124
    }  # fmt: skip
    assert found["compile"]["results"] == [{"label": "sft 135M", "tokens/s": 1234.5}]
    said = (out / "report.md").read_text()
    assert "Failed: tests, speed-360M, compile, host-memory" in said and "| dpo 360M | None | no memory |" in said
    assert "| sft 135M | 1,234 |" in said and "3 failed" in said and "**out of time**" in said


def test_the_limits_of_the_gpu_parts_fit_into_the_whole_call(script: Script) -> None:
    """With the time for wheels; and the whole call into 8 minutes."""
    gpu_parts = script("compare.gpu_parts")
    limits = sum(part.seconds for part in gpu_parts.parts([]).values())
    assert limits + gpu_parts.WHEELS_SECONDS <= gpu_parts.parse([]).seconds < 8 * 60


# promise: gpu-report
@pytest.mark.slow
def test_a_dry_gpu_report_has_all_parts(tmp_path: Path) -> None:
    """On a CPU with a tiny model: each part that needs no GPU ends well, and each measured job has its numbers."""
    done = gpu("--out", str(tmp_path), "--dry", "--seconds", "1500")
    found = json.loads((tmp_path / "report.json").read_text())
    needs_nothing = found.keys() - {"trl-sft", "trl-dpo"} if importlib.util.find_spec("trl") is None else found.keys()
    failed = {name: found[name]["last_lines"] for name in needs_nothing if found[name]["code"] not in (0, 5)}
    assert not failed, done.stdout
    jobs = [job for part in found.values() for job in part["results"] if "label" in job]
    assert len(jobs) == 3 * 2 + 8 + 2 + 1 and all(job["tokens/s"] > 0 for job in jobs)


def test_gpu_names_what_is_missing() -> None:
    """An unknown part, and no folder for the results."""
    done = gpu("--out", "x", "--parts", "speeed")
    assert done.returncode == 2 and "invalid choice: 'speeed'" in done.stderr
    done = gpu(env={"PATH": os.environ["PATH"]})
    assert done.returncode == 2 and "--out" in done.stderr
