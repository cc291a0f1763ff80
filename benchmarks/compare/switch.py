"""Optimizer steps with one setting of the switches, for switches.py."""

import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, seed_everything

from compare.record import peak_bytes
from compare.rows import make_data
from compare.smollit_side import fused_adamw
from smollit.losses import DPO
from smollit.modules import DPOModule, FineTuningModule, SFTModule
from smollit.training import SmollitTrainer
from smollit.training.steps import at_step_end


class Watch(Callback):
    """Loss and gradient norm of the first step, its weights if they are asked for, and the seconds of each step."""

    def __init__(self, weights: str | None) -> None:
        self.weights = weights
        self.loss = self.norm = 0.0
        self.micro_batches = 0
        self.seconds: list[float] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Start the clock."""
        self.start = now()

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """The window is full, and not divided yet."""
        if not self.seconds:
            total, count = pl_module.window.totals(trainer.strategy)
            self.loss, self.micro_batches = float(total / count), len(pl_module.window)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        """After each optimizer step."""
        if not at_step_end(trainer):
            return
        self.seconds.append(now() - self.start)
        if len(self.seconds) == 1:
            self.norm = float(pl_module.gradient_norm)
            if self.weights:
                torch.save(pl_module.policy.state_dict(), self.weights)
        self.start = now()


def now() -> float:
    """The clock, after all work on a GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def make_module(job: dict[str, Any]) -> FineTuningModule:
    """The module with its switches; a fused optimizer is one of them."""
    options = dict(job["model"])
    if options.pop("fused", False):
        options["optimizer"] = fused_adamw
    fixed = {"model_name": job["model_name"], "learning_rate": 1e-4, "schedule": "constant"}
    if job["task"] == "sft":
        return SFTModule(**fixed | options)
    # At the first step policy and reference are equal, and DPO's loss is ln 2 whatever they compute. This part is not.
    return DPOModule(**fixed | {"loss": DPO(nll_weight=1.0)} | options)


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Train, and return the measurements."""
    seed_everything(0, verbose=False)
    watch, rows = Watch(job["weights"]), Path(job["rows"])
    data = make_data(job["task"], rows, job["model_name"], job["max_length"], rows.parent / job["cache"], **job["data"])
    trainer = SmollitTrainer(
        default_root_dir=str(rows.parent / "run"),
        callbacks=[watch],
        accelerator="cpu" if job["device"] == "cpu" else "gpu",
        devices=1,
        precision=job["precision"],
        max_steps=job["steps"],
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        **job["trainer"],
    )
    trainer.fit(make_module(job), datamodule=data)
    return {
        "loss": watch.loss,
        "gradient_norm": watch.norm,
        "micro_batches": watch.micro_batches,
        "seconds": min(watch.seconds[1:] or watch.seconds),
        "peak_memory": peak_bytes(job["device"]),
    }
