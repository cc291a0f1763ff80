"""The tokenising benchmark: its rows, its ratios, and, where TRL is installed, one small round of it."""

import argparse
import importlib
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
needs_trl = pytest.mark.skipif(
    importlib.util.find_spec("trl") is None, reason="TRL is not installed: pip install -e '.[trl]'"
)
HI, HELLO, BYE = (
    {"role": role, "content": text} for role, text in (("user", "Hi"), ("assistant", "Hello."), ("assistant", "Bye."))
)


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    """The script as a module."""
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module("tokenising")
    sys.path.remove(str(BENCHMARKS))


def test_repeated_rows_are_all_different(script: ModuleType, tmp_path: Path) -> None:
    """Two pairs, five times in all: row 3 is the second pair with its number, in the prompts of both answers."""
    rows = [{"chosen": [HI, HELLO], "rejected": [HI, BYE]}, {"chosen": [HI, BYE], "rejected": [HI, HELLO]}]
    lines = Path(script.write_numbered(rows, 5, tmp_path / "rows.jsonl")).read_text().splitlines()
    assert len(set(lines)) == 5
    prompt = {"role": "user", "content": "Hi (3)"}
    assert json.loads(lines[3]) == {"chosen": [prompt, BYE], "rejected": [prompt, HELLO]}
    assert rows[1]["chosen"][0] == HI


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": [HI, HELLO]}, True),
        ({"messages": [HI]}, False),
        ({"messages": []}, False),
        ({"messages": [HI | {"content": None}, HELLO]}, False),
        ({"chosen": [HI, HELLO], "rejected": [HI, BYE]}, True),
        ({"chosen": [HI, HELLO], "rejected": [HI, HELLO]}, False),
    ],
)
def test_rows_that_a_tool_would_drop_are_left_out(script: ModuleType, row: dict[str, Any], expected: bool) -> None:
    """No answer, no messages, a text that is null, equal answers."""
    assert script.usable(row) is expected


def test_ratios_are_smollit_over_trl_and_growth_is_each_ones_own(script: ModuleType) -> None:
    """30 / 10 and 40 / 10 rows/s; 50 / 100 and 60 / 200 of memory; 22 / 20 and 90 / 30 from 1x to 10x."""
    ours = {size: {"rows_per_s": speed, "peak_memory": peak, "peak_own_memory": own} for size, speed, peak, own in
            (("1x", 30, 50, 20), ("10x", 40, 60, 22))}  # fmt: skip
    theirs = {size: {"rows_per_s": 10, "peak_memory": peak, "peak_own_memory": own} for size, peak, own in
              (("1x", 100, 30), ("10x", 200, 90))}  # fmt: skip
    assert script.ratios(ours, theirs) == pytest.approx(
        {
            "rows_per_s_1x": 3, "rows_per_s_10x": 4, "peak_memory_1x": 0.5, "peak_memory_10x": 0.3,
            "smollit_own_memory_10x_over_1x": 1.1, "trl_own_memory_10x_over_1x": 3,
        }
    )  # fmt: skip


def test_the_median_counts_and_each_measurement_has_an_empty_cache(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of 9, 1 and 2 seconds 2 is the median."""
    seconds, caches = iter((9.0, 1.0, 2.0)), []

    def start(job: Any) -> dict[str, float]:
        assert not any(Path(job.cache).iterdir())
        caches.append(job.cache)
        return {"seconds": next(seconds)}

    monkeypatch.setattr(script, "start", start)
    job = script.Job("smollit", "sft", "", "", 8, 1, "")
    assert script.repeated(job, 3, tmp_path) == {"seconds": 2.0}
    assert len(set(caches)) == 3


def test_without_trl_it_says_what_to_install(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """TRL is an extra of its own."""
    monkeypatch.setattr(script, "find_spec", lambda name: None)
    assert script.main([]) == 2
    assert "pip install -e '.[trl]'" in capsys.readouterr().err


@needs_trl
@pytest.mark.parametrize("task", ["sft", "dpo"])
def test_both_tools_prepare_all_rows(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, task: str
) -> None:
    """In this process: 5 and 50 rows each, then 7 rows twice with one cache; the second time they are in it."""
    prepare = importlib.import_module("compare.prepare")
    jobs: list[Any] = []

    def start(job: Any) -> dict[str, float]:
        jobs.append(job)
        return prepare.measure(job)

    monkeypatch.setattr(script, "start", start)
    options = argparse.Namespace(
        data=None, tokenizer=str(script.TINY), max_length=64, num_proc=1, rows=5, repeat=1, second_start_rows=7
    )
    found = script.compare_task(task, options, tmp_path)
    counts = [len(Path(job.file).read_text().splitlines()) for job in jobs]
    assert [job.tool for job in jobs] == ["smollit", "trl", "smollit", "trl", "smollit", "smollit"]
    assert counts == [5, 5, 50, 50, 7, 7]
    assert jobs[4].cache == jobs[5].cache
    assert found["trl"]["10x"]["rows_per_s"] == pytest.approx(50 / found["trl"]["10x"]["seconds"])
    assert all(found[tool]["1x"]["peak_memory"] >= found[tool]["1x"]["peak_own_memory"] for tool in ("smollit", "trl"))
    assert len(script.table({"tasks": {task: found}})) == 1 + 4 + 2


def test_a_measurement_that_fails_shows_its_error(script: ModuleType, tmp_path: Path) -> None:
    """The process of a tool that has no such file."""
    with pytest.raises(RuntimeError, match=r"missing\.jsonl"):
        script.start(
            script.Job("smollit", "sft", str(tmp_path / "missing.jsonl"), str(script.TINY), 8, 1, str(tmp_path))
        )
