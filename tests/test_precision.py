"""A run whose precision is slow on its device says so at the start, with the setting to change."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from smollit import precision
from smollit.metrics.base import MeanOfSums
from smollit.precision import bf16_flag, slow_precision

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


class NoDouble(TorchDispatchMode):
    """Fails at the first tensor in fp64, as an Apple GPU does."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        assert all(tensor.dtype != torch.float64 for tensor in tree_leaves(made) if isinstance(tensor, Tensor)), func
        return made


class SinglePrecision(Callback):
    """Gives the metrics' sums the dtype that they have on an Apple GPU, and watches from there on."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for metric in (each for each in pl_module.modules() if isinstance(each, MeanOfSums)):
            metric.total, metric.count = metric.total.float(), metric.count.float()
            metric._defaults = {name: zero.float() for name, zero in metric._defaults.items()}
        self.mode = NoDouble()
        self.mode.__enter__()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.mode.__exit__(None, None, None)


@pytest.mark.parametrize("kind", ["sft", "dpo"])
@pytest.mark.slow
def test_a_run_needs_no_double_precision(kind: str, make_run: Any) -> None:
    """Apple's GPUs have none: steps, clipping, metrics, validation and checkpoints make no tensor in fp64."""
    watch = SinglePrecision()
    run = make_run([watch], kind, max_steps=4, val_every_n_steps=2, gradient_clip_val=1.0, precision="bf16-mixed").fit()
    assert run.trainer.global_step == 4 and (run.folder / "checkpoints" / "last.ckpt").is_file()
