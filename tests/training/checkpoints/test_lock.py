"""One writer per run folder; and a folder that can't be used is refused before anything is loaded."""

import json
import logging
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from smollit.training import SmollitTrainer
from tests.training.conftest import Act, stop_at


@pytest.fixture
def neighbour() -> Iterator[psutil.Process]:
    """Another process of this machine, alive."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield psutil.Process(process.pid)
        process.kill()


def lock(folder: Path, **changes: Any) -> Path:
    """The lock of a run in this folder."""
    holder = {"host": socket.gethostname(), "pid": 1, "started": 0.0, "since": "2026-01-02 03:04:05"} | changes
    folder.mkdir(exist_ok=True)
    (folder / "run.lock").write_text(json.dumps(holder))
    return folder / "run.lock"


# promise: one-run
# case: B8
def test_a_second_run_is_refused_and_changes_nothing(fit: Any, tmp_path: Path, neighbour: psutil.Process) -> None:
    """The lock of a live process, also after the clock was set, or of another machine: its holder is named, and no file
    is written."""
    started = neighbour.create_time()
    set_back = {"started": started + 3600, "after_boot": started - psutil.boot_time()}
    for holder in ({"started": started}, set_back, {"host": "elsewhere"}):
        holder = {"pid": neighbour.pid} | holder if "host" not in holder else holder
        path = lock(tmp_path, **holder)
        before = path.read_text()
        error = fit(tmp_path, max_steps=1).error
        assert isinstance(error, ValueError) and "2026-01-02 03:04:05" in str(error) and str(path) in str(error)
        assert str(holder.get("pid", "elsewhere")) in str(error) and "`trainer.default_root_dir`" in str(error)
        assert path.read_text() == before
        assert {file.name for file in tmp_path.rglob("*")} == {"run.lock"}


# case: B8
@pytest.mark.slow
def test_the_lock_of_a_dead_process_is_taken_over_and_released(
    fit: Any, tmp_path: Path, neighbour: psutil.Process, caplog: pytest.LogCaptureFixture
) -> None:
    """No such process, its number used again by a process that started later, or killed while it wrote the lock. While
    the run lasts, the lock names this process; a signal and an error release it as the end does."""
    seen: list[dict[str, Any]] = []
    look = Act("on_train_start", act=lambda: seen.append(json.loads((tmp_path / "run.lock").read_text())))
    for holder in ({"pid": 2**22 + 1}, {"pid": neighbour.pid, "started": neighbour.create_time() - 60}):
        lock(tmp_path, **holder)
        with caplog.at_level(logging.WARNING, logger="smollit"):
            assert fit(tmp_path, look, max_steps=1).error is None
        assert f"process {holder['pid']} since 2026-01-02 03:04:05, which is gone" in caplog.text
        assert not (tmp_path / "run.lock").exists()
    lock(tmp_path).write_text('{"host":')
    assert isinstance(fit(tmp_path, stop_at(2)).error, SystemExit) and not (tmp_path / "run.lock").exists()
    assert seen[0]["pid"] == psutil.Process().pid


# case: B11
@pytest.mark.parametrize("blocked", ["run", "run/checkpoints"])
def test_a_file_in_the_way_is_named_at_the_start(blocked: str, fit: Any, tmp_path: Path) -> None:
    """In place of the run folder, or of checkpoints/ in it: no step is made."""
    (tmp_path / blocked).parent.mkdir(exist_ok=True)
    (tmp_path / blocked).write_text("in the way")
    run = fit(tmp_path / "run", max_steps=1)
    assert isinstance(run.error, ValueError) and run.steps == []
    assert "`trainer.default_root_dir`" in str(run.error) and str(tmp_path / blocked) in str(run.error)


# case: B10
def test_home_is_expanded_and_a_url_is_refused(fit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """~/run is in the home folder, checkpoints included, and nothing is called `~`."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert fit("~/run", max_steps=1).error is None  # type: ignore[arg-type]
    assert (tmp_path / "run/checkpoints/last.ckpt").is_file() and not (tmp_path / "~").exists()
    with pytest.raises(ValueError, match="must be local"):
        raise fit("memory://bucket/run", max_steps=1).error  # type: ignore[arg-type]
    assert SmollitTrainer("~/run", accelerator="cpu", logger=False).default_root_dir == str(tmp_path / "run")


def test_files_that_a_killed_process_was_writing_are_removed(
    fit: Any, tmp_path: Path, neighbour: psutil.Process
) -> None:
    """Process 4194305 can't exist on Linux. Those of a live process and of another machine stay."""
    host = socket.gethostname()
    writers = (f"{host}-4194305", f"{host}-{neighbour.pid}", "elsewhere-4194305")
    gone, *others = [tmp_path / f".metrics.csv.{writer}.tmp" for writer in writers]
    for path in (gone, *others):
        path.touch()
    assert fit(tmp_path, max_steps=1).error is None
    assert not gone.exists() and all(path.exists() for path in others)
