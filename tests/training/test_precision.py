"""A run whose precision is slow on its device says so at the start, with the setting to change."""

from pathlib import Path
from typing import Any

import pytest

from smollit.training import precision
from smollit.training.precision import bf16_flag, slow_precision

LARGE = 135_000_000


@pytest.mark.parametrize(
    ("given", "kind", "fast", "parameters", "advised"),
    [
        ("bf16-mixed", "cpu", False, 1, "32-true"),
        ("bf16-true", "cpu", False, LARGE, "32-true"),
        ("bf16-mixed", "cpu", True, LARGE, None),
        ("32-true", "cpu", True, LARGE, "bf16-mixed"),
        ("32-true", "cpu", True, 1_000_000, None),
        ("32-true", "cpu", False, LARGE, None),
        ("32-true", "cuda", True, 1, "bf16-mixed"),
        ("32-true", "cuda", False, 1, "16-mixed"),
        ("bf16-mixed", "cuda", False, 1, "16-mixed"),
        ("bf16-mixed", "cuda", True, LARGE, None),
        ("16-mixed", "cuda", True, LARGE, None),
        ("32-true", "mps", True, LARGE, None),
    ],
)
def test_a_precision_is_slow_on_some_devices(
    given: str, kind: str, fast: bool, parameters: int, advised: str | None
) -> None:
    """The sentence names the setting, its value, and a better one; on the device where none is better it is silent."""
    said = slow_precision(given, kind, fast_bf16=fast, parameters=parameters)
    assert (said is None) == (advised is None)
    if said is not None:
        assert said.startswith(f"`trainer.precision` is {given}") and f"`trainer.precision` to {advised}" in said


# promise: slow-precision
@pytest.mark.parametrize(("flags", "says"), [("avx2 avx512f", True), ("avx2 avx512_bf16 amx_bf16", False)])
def test_the_start_says_that_bf16_is_slow(
    flags: str,
    says: bool,
    make_run: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The processor is another one: the text that Linux has about it is replaced."""
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nflags\t\t: fpu {flags}\n")
    monkeypatch.setattr(precision, "CPUINFO", cpuinfo)
    with caplog.at_level("WARNING", logger="smollit"):
        make_run(precision="bf16-mixed", max_steps=1).fit()
    assert ("has neither AVX512-BF16 nor AMX" in caplog.text) == says
    assert bf16_flag(cpuinfo) == (None if says else "amx_bf16")
