"""The program of these tests: short runs on the emulated GPU, or the same on the CPU. It writes a JSON file of results.

python tests/emulated_gpu/runs.py emulated|cpu MODEL REFERENCE FOLDER
"""

import contextlib
import importlib
import io
import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback
from torch.nn.attention.varlen import varlen_attn

from smollit.data import UltraChatDataModule, UltraFeedbackDataModule
from smollit.main import main
from smollit.models.adapters import LoRA
from smollit.modules import DPOModule, SFTModule
from smollit.training import SmollitTrainer
from smollit.training.logs.table import FILE, read_table
from tests.conftest import SAMPLES
from tests.emulated_gpu import device, kernel

Found = dict[str, Any]
MICRO_BATCHES = 3  # of an optimizer step


class Case(NamedTuple):
    """What a run sets. It has 3 steps; one that resumes is stopped after 2 of 4."""

    kind: str = "sft"
    precision: str = "bf16-mixed"
    model: dict[str, Any] = {}
    max_batch_tokens: str | None = None
    resumes: bool = False


BY_PRECISION = {
    f"{kind} {precision}": Case(kind, precision)
    for kind in ("sft", "dpo")
    for precision in ("bf16-mixed", "16-mixed", "bf16-true", "32-true")
}
CASES = BY_PRECISION | {
    "sft lora": Case(model={"adapter": LoRA()}),
    "dpo lora": Case("dpo", model={"adapter": LoRA(), "learning_rate": 1e-3}),
    "dpo offloaded": Case("dpo", model={"reference": "offloaded"}),
    "dpo precomputed": Case("dpo", model={"reference": "precomputed"}),
    "dpo checkpointing": Case("dpo", model={"gradient_checkpointing": True}),
    "sft selective": Case(model={"gradient_checkpointing": "selective"}),
    "sft auto tokens": Case(max_batch_tokens="auto"),
    "dpo auto tokens": Case("dpo", max_batch_tokens="auto"),
    "sft resumed": Case(resumes=True),
    "dpo resumed": Case("dpo", resumes=True),
}


class InsideOfSteps(Callback):
    """Notes where the host waits, and how often the kernel is called, in the micro-batches between the first and the
    last one of a step."""

    def __init__(self) -> None:
        self.found: Found = {"waits": [], "kernel_calls": 0}

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if 0 < batch_idx % MICRO_BATCHES < MICRO_BATCHES - 1:
            self.found["waits"] += device.WAITS
            self.found["kernel_calls"] += kernel.CALLS.total()
        self.found |= {"device": str(module.device), "attention": module.policy.attention}
        device.WAITS.clear()
        kernel.CALLS.clear()


class Runs:
    """Runs on one device.

    Args:
        on_gpu: Whether it is the emulated GPU.
        model: Folder of the model.
        folder: Where the runs and the cache of data are.
    """

    def __init__(self, *, on_gpu: bool, model: str, folder: Path) -> None:
        self.on_gpu, self.model, self.folder = on_gpu, model, folder

    def fit(self, name: str, case: Case) -> Found:
        """Train, and validate after every second step: the losses by step, and what was inside of steps."""
        inside = InsideOfSteps()
        module = SFTModule if case.kind == "sft" else DPOModule
        own = {"learning_rate": 1e-2, "attention": "auto" if self.on_gpu else "documents"} | case.model
        for max_steps in (2, 4) if case.resumes else (3,):
            trainer = SmollitTrainer(
                self.folder / name,
                callbacks=[inside],
                accelerator="gpu" if self.on_gpu else "cpu",
                devices=1,
                precision="32-true" if case.precision == "16-mixed" and not self.on_gpu else case.precision,
                accumulate_grad_batches=MICRO_BATCHES,
                gradient_clip_val=1.0,
                max_steps=max_steps,
                log_every_n_steps=1,
                val_every_n_steps=2,
                enable_checkpointing=case.resumes,
                enable_progress_bar=False,
                num_sanity_val_steps=0,
            )
            trainer.fit(module(self.model, **own), datamodule=self.data(case), ckpt_path="last")
        rows = read_table(self.folder / name / FILE)
        losses = {f"{key} {row['step']}": row[key] for row in rows for key in ("train/loss", "val/loss")}
        return inside.found | {"losses": {key: float(value) for key, value in losses.items() if value}}

    def data(self, case: Case) -> UltraChatDataModule | UltraFeedbackDataModule:
        """100 sample rows of at most 48 tokens, packed, 2 sequences in a micro-batch; 4 rows of validation."""
        is_sft = case.kind == "sft"
        samples, split = ("ultrachat", "sft") if is_sft else ("ultrafeedback", "prefs")
        return (UltraChatDataModule if is_sft else UltraFeedbackDataModule)(
            str(SAMPLES / samples),
            train_split=f"train_{split}[:100]",
            val_split=f"test_{split}[:4]",
            tokenizer_name=self.model,
            cache_dir=str(self.folder / "cache"),
            max_length=48,
            max_dropped_share=1.0,
            train_batch_size=2,
            val_batch_size=2,
            packing="on",
            max_batch_tokens=case.max_batch_tokens if self.on_gpu else None,
        )

    def score(self, reference: str) -> Found:
        """What `score` prints of chats and pairs."""
        words = [self.model, "--chats", f"{SAMPLES / 'ultrachat'}:test_sft", "--max_rows", "6", "--max_length", "64"]
        words += ["--pairs", f"{SAMPLES / 'ultrafeedback'}:test_prefs", "--reference", reference, "--json"]
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            main(["score", *words])
        return {"table": json.loads(printed.getvalue())}


def emulation() -> Found:
    """What the emulated GPU does with operations: `refuses`, `waits` or `runs`."""
    on_gpu = torch.ones(8, 1, 8, dtype=torch.bfloat16).to("cuda", non_blocking=True)
    boundaries = torch.arange(0, 9, 4, dtype=torch.int32).to("cuda", non_blocking=True)
    operations: dict[str, Callable[[], object]] = {
        "generator of the CPU": lambda: torch.rand(3, device="cuda", generator=torch.Generator()),
        "tensors on two devices": lambda: on_gpu + torch.ones(8),
        "numpy": on_gpu.numpy,
        "kernel in fp32": lambda: varlen_attn(*[on_gpu.float()] * 3, *[boundaries] * 2, 4, 4),
        "kernel with a wrong bound": lambda: varlen_attn(*[on_gpu] * 3, *[boundaries] * 2, 3, 4),
        "item": on_gpu.sum().item,
        "tolist": on_gpu.tolist,
        "mask": lambda: on_gpu[on_gpu > 0],
        "copy to the GPU": lambda: torch.ones(3).to("cuda"),
        "copy to the CPU": on_gpu.cpu,
        "copy without a wait": lambda: torch.ones(3).to("cuda", non_blocking=True),
        "kernel": lambda: varlen_attn(*[on_gpu] * 3, *[boundaries] * 2, 4, 4),
    }
    return {name: outcome(operation) for name, operation in operations.items()}


def outcome(operation: Callable[[], object]) -> str:
    """Of an operation on the emulated GPU."""
    device.WAITS.clear()
    try:
        operation()
    except (RuntimeError, TypeError, AssertionError):
        return "refuses"
    return "waits" if device.WAITS else "runs"


def result_of(run: Callable[[], Found]) -> Found:
    """What a run finds, or the error that ends it."""
    try:
        return run()
    except BaseException:  # also the exit of a command
        return {"error": traceback.format_exc()}


def work(*, on_gpu: bool, model: str, reference: str, folder: Path) -> None:
    """Write the results of all runs."""
    runs = Runs(on_gpu=on_gpu, model=model, folder=folder)
    found = {name: result_of(lambda name=name, case=case: runs.fit(name, case)) for name, case in CASES.items()}
    found["score"] = result_of(lambda: runs.score(reference))
    if on_gpu:
        found["emulation"] = emulation()
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    if sys.argv[1] == "emulated":
        importlib.import_module("peft")  # bitsandbytes, which it imports, would ask the device for more of CUDA
        device.install()
    work(on_gpu=sys.argv[1] == "emulated", model=sys.argv[2], reference=sys.argv[3], folder=Path(sys.argv[4]))
