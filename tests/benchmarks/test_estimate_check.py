"""benchmarks/estimate_check.py: it runs with the tiny model, and says how far off an estimate is."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module; its folder is on the path, as when it is run."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("estimate_check", BENCHMARKS / "estimate_check.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "estimate_check", module)
    spec.loader.exec_module(module)
    return module


def test_table(check: ModuleType) -> None:
    """3 GiB foretold, 4 GiB measured: 0.75."""
    gib = 1024**3
    assert "| plain | 3.00 | 4.00 | 0.75 |" in check.table([check.Result("plain", 3 * gib, 4 * gib)])


def test_far_off_is_an_error(check: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """0.84 is more than 15 % off, 0.86 is not."""
    for estimated, fails in ((84, True), (86, False)):
        monkeypatch.setattr(check, "check", lambda name, *_, size=estimated: check.Result(name, size, 100))
        if fails:
            with pytest.raises(SystemExit):
                check.main(["--model", str(tmp_path)])
        else:
            assert [result.name for result in check.main(["--model", str(tmp_path)])] == list(check.SETTINGS["sft"])


@pytest.mark.slow
def test_tiny_run(check: ModuleType) -> None:
    """Nearly all of a process is libraries: both figures are within a fifth of each other."""
    results = check.main(["--settings", "plain", "--max_length", "64", "--steps", "1", "--rows", "8"])
    assert results[0].ratio == pytest.approx(1, abs=0.2)
