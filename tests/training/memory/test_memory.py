"""Memory: what the system reports, freed memory that stays with the process, and advice when it runs out."""

import ctypes
import resource
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from smollit.data import UltraChatDataModule
from smollit.modules import DPOModule, SFTModule
from smollit.training import SmollitTrainer
from smollit.training.memory.advice import advice
from smollit.training.memory.device import container_free, held_bytes, peak_bytes

GLIBC_DEFAULTS = {-1: 128 * 1024, -3: 128 * 1024, -4: 65_536}  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX


def page_faults() -> int:
    """Pages that the system maps for a tensor of 512 MiB, which is freed at once, when it is not the first one."""
    for _ in range(4):  # the heap grows to what it needs
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.empty(128 * 2**20).fill_(1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is on Linux")
@pytest.mark.slow
def test_memory_of_a_freed_tensor_is_used_again_after_training_on_a_cpu(fit: Any, tmp_path: Path) -> None:
    """512 MiB are 131,072 pages of 4 KiB, or 256 of 2 MiB: each tensor maps them anew by default, and none after a fit.
    No earlier test leaves as much free memory between what is in use, which would not be mapped anew."""
    for parameter, value in GLIBC_DEFAULTS.items():  # an earlier fit in this process has changed them
        assert ctypes.CDLL(None).mallopt(parameter, value)
    assert page_faults() >= 256
    assert fit(tmp_path, max_steps=1).error is None
    assert page_faults() < 16


def test_a_containers_limit_leaves_what_is_not_used(tmp_path: Path) -> None:
    """A limit of 100 with 60 in use leaves 40; `max` and a missing file are no limit."""
    assert container_free(tmp_path) is None
    (tmp_path / "memory.max").write_text("100\n")
    (tmp_path / "memory.current").write_text("60\n")
    assert container_free(tmp_path) == 40
    (tmp_path / "memory.max").write_text("max\n")
    assert container_free(tmp_path) is None


def test_the_peak_is_at_least_what_is_held() -> None:
    cpu = torch.device("cpu")
    assert peak_bytes(cpu) >= 0.9 * held_bytes(cpu) > 1024**2


# ---- running out


class RunsOut(Callback):
    """Raises in training or in validation, as a device's allocator does."""

    def __init__(self, stage: str, error: BaseException) -> None:
        self.stage = stage
        self.error = error

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        if self.stage == "train":
            raise self.error

    def on_validation_batch_end(self, *_: Any) -> None:
        if self.stage == "val":
            raise self.error


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory"),
    MemoryError(),
]


# promise: out-of-memory
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_training_runs_out(fit: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, error: BaseException) -> None:
    """2 rows, the longest of 13, come first: one message, the settings' present values, the same error."""
    run = fit(tmp_path, RunsOut("train", error))
    assert run.error is error
    (message,) = [text for record in caplog.records if "out of memory on cpu" in (text := record.getMessage())]
    second, longest = sorted(run.trainer.datamodule.examples["train"].lengths)[-2:]
    size = f"2 rows x {longest:,} positions ({longest + second:,} tokens, longest row {longest:,})"
    assert f"in training, at a batch of {size}; the peak was" in message
    lines = [line.split(" (")[0] for line in message.splitlines()[1:-1]]
    assert lines == [
        "  1. model.gradient_checkpointing: false -> true",
        "  2. data.train_batch_size: 2 -> 1",
        "  3. model.chunk_size: 512 -> 256",
        "  4. data.max_length: 96 -> 48",
    ]
    assert "trainer.accumulate_grad_batches: 4, each step" in message  # 2 x 2 rows are 1 x 4


def test_validation_runs_out(fit: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Other settings help: the batch of validation, and not checkpointing."""
    run = fit(tmp_path, RunsOut("val", ERRORS[0]))
    assert run.error is ERRORS[0]
    assert "in validation, at a batch of 2 rows" in caplog.text
    assert "1. data.val_batch_size: 2 -> 1" in caplog.text and "gradient_checkpointing" not in caplog.text


@pytest.mark.parametrize("error", [RuntimeError("size mismatch"), ValueError("out of memory"), OSError()])
def test_other_errors_get_no_advice(
    fit: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    assert fit(tmp_path, RunsOut("train", error)).error is error
    assert "Settings that need less" not in caplog.text


@pytest.mark.parametrize(
    ("module_class", "options", "sizes", "expected", "in_evaluation"),
    [
        (
            DPOModule,
            {"gradient_checkpointing": "selective", "chunk_size": 512},
            {"train_batch_size": 6, "val_batch_size": 1},
            [
                ("model.gradient_checkpointing", "selective", "true"),
                ("data.train_batch_size", "6", "3"),
                ("model.reference", "frozen", "precomputed"),
                ("model.chunk_size", "512", "256"),
                ("data.max_length", "64", "32"),
            ],
            ["model.reference", "model.chunk_size", "data.max_length"],
        ),
        (
            SFTModule,
            {"gradient_checkpointing": True, "chunk_size": 256},
            {"train_batch_size": 1, "val_batch_size": 4},
            [("data.max_length", "64", "32")],
            ["data.val_batch_size", "data.max_length"],
        ),
    ],
)
def test_advice_has_the_present_values_and_leaves_out_what_is_set(
    module_class: Any, options: Any, sizes: Any, expected: Any, in_evaluation: Any, tiny_model: Path, tmp_path: Path
) -> None:
    """First what leaves the result as it is, the length last. bf16 is for GPUs."""
    module = module_class(str(tiny_model), **options)
    data = UltraChatDataModule(tokenizer_name=str(tiny_model), max_length=64, cache_dir=str(tmp_path), **sizes)
    trainer = SmollitTrainer(str(tmp_path), accelerator="cpu", logger=False)
    assert [(entry.setting, entry.now, entry.better) for entry in advice(trainer, module, data)] == expected
    assert [entry.setting for entry in advice(trainer, module, data, training=False)] == in_evaluation
