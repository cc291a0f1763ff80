"""Out of memory: one message with the batch and the settings to change; the error itself goes on."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from smollit.data import UltraChatDataModule
from smollit.data.batching.collate import collate_chats
from smollit.modules import DPOModule, SFTModule
from smollit.training import SmollitTrainer
from smollit.training.out_of_memory import advice, describe, is_out_of_memory


class RunsOut(Callback):
    """Fails as a device's allocator does, in training or in validation."""

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


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_training_runs_out(fit: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, error: BaseException) -> None:
    """2 rows; the longest ones of 13 come first. One message, the settings' present values, the same error."""
    run = fit(tmp_path, RunsOut("train", error))
    assert run.error is error
    told = [record.getMessage() for record in caplog.records if "out of memory on cpu" in record.getMessage()]
    assert len(told) == 1
    longest = max(run.trainer.datamodule.examples["train"].lengths)
    assert "in training, at a batch of 2 rows x " in told[0] and f"longest row {longest:,})" in told[0]
    lines = [line.split(" (")[0] for line in told[0].splitlines()[1:-1]]
    assert lines == [
        "  1. model.gradient_checkpointing: false -> true",
        "  2. data.train_batch_size: 2 -> 1",
        "  3. model.chunk_size: 512 -> 256",
        "  4. data.max_length: 96 -> 48",
    ]
    assert "trainer.accumulate_grad_batches: 4, each step" in told[0]  # 2 x 2 rows are 1 x 4


def test_validation_runs_out(fit: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Other settings help: the batch of validation, and not checkpointing."""
    run = fit(tmp_path, RunsOut("val", ERRORS[0]))
    assert run.error is ERRORS[0]
    assert "in validation, at a batch of 2 rows" in caplog.text
    assert "1. data.val_batch_size: 2 -> 1" in caplog.text and "gradient_checkpointing" not in caplog.text


def test_other_errors_are_not_explained(fit: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fit(tmp_path, RunsOut("train", RuntimeError("shapes do not match")))
    assert "out of memory" not in caplog.text


def test_which_errors_are_of_memory() -> None:
    assert all(map(is_out_of_memory, ERRORS))
    assert not any(map(is_out_of_memory, [RuntimeError("size mismatch"), ValueError("out of memory"), OSError()]))


def test_description_of_a_batch() -> None:
    """Rows of 2 + 3 and of 4 positions: 2 x 5, with 9 tokens."""

    def chat(length: int) -> dict[str, Any]:
        return {"input_ids": list(range(length + 1)), "spans": [1, 2], "row": 0}

    batch = collate_chats([[chat(2), chat(3)], [chat(4)]])
    assert describe(batch) == "2 rows x 5 positions (9 tokens, longest row 5)"


def chats(tiny_model: Path, tmp_path: Path, **sizes: int) -> UltraChatDataModule:
    return UltraChatDataModule(tokenizer_name=str(tiny_model), max_length=64, cache_dir=str(tmp_path), **sizes)


def cpu_trainer(tmp_path: Path) -> SmollitTrainer:
    return SmollitTrainer(default_root_dir=str(tmp_path), accelerator="cpu", logger=False)


def test_advice_has_the_present_values(tiny_model: Path, tmp_path: Path) -> None:
    """First what leaves the result as it is, the length last. bf16 is for GPUs."""
    module = DPOModule(str(tiny_model), gradient_checkpointing="selective", chunk_size=512)
    found = advice(cpu_trainer(tmp_path), module, chats(tiny_model, tmp_path, train_batch_size=6))
    assert [(entry.setting, entry.now, entry.better) for entry in found] == [
        ("model.gradient_checkpointing", "selective", "true"),
        ("data.train_batch_size", "6", "3"),
        ("model.reference", "frozen", "precomputed"),
        ("model.chunk_size", "512", "256"),
        ("data.max_length", "64", "32"),
    ]
    assert "accumulate_grad_batches: 2" in found[1].why


def test_advice_leaves_out_what_is_already_set(tiny_model: Path, tmp_path: Path) -> None:
    """Checkpointing on, one row, a small chunk: only the length is left."""
    module = SFTModule(str(tiny_model), gradient_checkpointing=True, chunk_size=256)
    data, trainer = chats(tiny_model, tmp_path, train_batch_size=1, val_batch_size=4), cpu_trainer(tmp_path)
    assert [entry.setting for entry in advice(trainer, module, data)] == ["data.max_length"]
    evaluation = [entry.setting for entry in advice(trainer, module, data, training=False)]
    assert evaluation == ["data.val_batch_size", "data.max_length"]
