"""Terminals and pipes whose encoding is not that of the texts."""

import io
import sys
from pathlib import Path

import pytest

from smollit.__main__ import run


def test_a_terminal_without_our_signs_gets_question_marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In ASCII, the mark of a finding is a `?`; the page has the sign itself."""
    (tmp_path / "metrics.csv").write_text("step,val/loss\n1,2.0\n2,2.0\n")
    screen = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "argv", ["smollit", "report", str(tmp_path)])
    run()
    screen.flush()
    said = screen.buffer.getvalue().decode("ascii")  # type: ignore[attr-defined]
    assert "? the loss has not moved" in said
    assert "✗" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_bytes_that_are_no_text_can_be_typed(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's stdin hands them on as lone surrogates, which no tokenizer takes."""
    typed = io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="utf-8", errors="surrogateescape")
    screen = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", typed)
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "argv", ["smollit", "chat", str(tiny_model), "--max_new_tokens", "2"])
    run()
    screen.flush()
    assert "[ends at max_new_tokens]" in screen.buffer.getvalue().decode()  # type: ignore[attr-defined]
