"""What a run prints: plain lines without a terminal, a bar of the run that fits one, and a summary at the end."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from callbacks import SampleGenerations
from tests.training.conftest import stop_at

LINE = re.compile(
    r"step (\d+) of 8: loss [\d.]+, accuracy [\d.]+, margin -?[\d.e-]+, rate [\d.e-]+, [\d,]+ tokens/s, \d+:\d\d left"
)
RUN = {"kind": "dpo", "log_every_n_steps": 2, "val_every_n_steps": 4, "max_epochs": 2, "logger": True}


# promise: console
# case: D7
@pytest.mark.parametrize("bar", [None, False])
@pytest.mark.slow
def test_plain_lines_where_there_is_no_terminal(fit: Any, tmp_path: Path, capsys: Any, bar: bool | None) -> None:
    """8 steps, a log every 2, a validation every 4: one line each, in their order, and no states of a bar."""
    fit(tmp_path / "run", **RUN, enable_progress_bar=bar)
    text = capsys.readouterr().out
    lines = [line for line in text.splitlines() if line.startswith(("step ", "validation at"))]
    assert [int(match[1]) for line in lines if (match := LINE.fullmatch(line))] == [2, 4, 6, 8]
    assert [number for number, line in enumerate(lines) if line.startswith("validation at step")] == [2, 5]
    assert re.fullmatch(r"validation at step 4: loss [\d.]+, accuracy [\d.]+, margin -?[\d.e-]+", lines[2])
    assert "\r" not in text and "0:00 left" in lines[4]


# promise: console
# case: D8
@pytest.mark.parametrize("kind", ["sft", "dpo"])
@pytest.mark.slow
def test_the_bar_counts_the_steps_of_the_run_in_80_columns(
    fit: Any, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """2 epochs of 7 micro-batches are 8 steps: the bar goes from 0/8 to 8/8 without a restart. Although nothing is
    logged before step 5, it has a loss from step 1 on; it says when samples are drawn, and a bar remains."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("tqdm.std.tqdm.mininterval", 0, raising=False)
    options = {**RUN, "kind": kind, "log_every_n_steps": 5, "enable_progress_bar": None}
    fit(tmp_path / "run", SampleGenerations(["Hi"], max_new_tokens=2), **options)
    text = capsys.readouterr().out
    states = [state for state in re.split(r"[\r\n]+", text) if re.search(r"\d+/8 \|", state)]
    assert max(len(re.sub(r"\x1b\[\w", "", state)) for state in states) <= 80
    bars = [re.search(r"\|(.*?)\|", state) for state in states]
    assert min(len(bar[1]) for bar in bars if bar) >= 5
    done = [int(re.search(r"(\d+)/8", state)[1]) for state in states]  # type: ignore[index]
    assert done == sorted(done) and {done[0], done[-1]} == {0, 8}
    assert any("drawing samples" in state for state in states)
    shown = [state for state, steps in zip(states, done, strict=True) if steps and "drawing" not in state]
    assert all(", loss " in state for state in shown)
    assert not LINE.search(text) and "validation at step 4: loss" in text


# case: D8
def test_what_follows_a_stop_begins_a_line(
    fit: Any, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bar is closed before the run ends: the next print is not glued to it."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    fit(tmp_path / "run", stop_at(3), **{**RUN, "enable_progress_bar": None})
    print("next")
    assert "\nnext\n" in capsys.readouterr().out


# promise: end-summary
@pytest.mark.slow
def test_the_end_summary_covers_earlier_starts(fit: Any, tmp_path: Path, capsys: Any) -> None:
    """Stopped at 5 and resumed: at most ten lines, from the first validation (step 4) to the last (step 8)."""
    fit(tmp_path / "run", stop_at(5), **RUN)
    assert "validation loss" not in capsys.readouterr().out
    fit(tmp_path / "run", **RUN)
    _, found, text = capsys.readouterr().out.partition("done ")
    assert found and len(text.splitlines()) <= 10
    for name in ("validation loss", "accuracy", "margin"):
        assert re.search(rf"^{name} +-?[\d.]+ at step 4 -> -?[\d.]+ at step 8", text, re.M)
    assert f"tensorboard --logdir {tmp_path / 'run'}" in text
