"""Throughput: tokens per second, tokens so far, and peak memory."""

import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from smollit.batch import Batch
from smollit.modules import FineTuningModule
from smollit.training.memory import GIB, peak_bytes
from smollit.training.steps import at_step_end


class Throughput(Callback):
    """Logs `throughput/*` and `memory/peak_gib` at the steps at which the losses are logged.

    Seen tokens are all positions that are not padding; the curves of trained tokens count the loss tokens. Totals are
    summed over all devices, count finished optimizer steps only, and continue after a resume. Tokens per second are
    over the time since the last log, without validation.
    """

    def __init__(self) -> None:
        self.totals = torch.zeros(2, dtype=torch.long)  # seen tokens and loss tokens, of all devices
        self.pending = torch.zeros(2, dtype=torch.long)  # of this device, since the last optimizer step
        self.logged = [0, 0]  # the totals at the last log
        self.seconds = 0.0  # of training, since the last log
        self.running_since: float | None = None

    def state_dict(self) -> dict[str, Any]:
        seen, trained = self.totals.tolist()
        return {"seen_tokens": seen, "trained_tokens": trained}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.totals = torch.tensor([state_dict["seen_tokens"], state_dict["trained_tokens"]])

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self.totals = torch.zeros(2, dtype=torch.long)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.totals = self.totals.to(pl_module.device)
        self.pending.zero_()
        self.logged = self.totals.tolist()
        self.seconds, self.running_since = 0.0, None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        if self.running_since is None:
            self.running_since = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.pending += torch.tensor([batch.num_tokens, batch.num_loss_tokens])
        if not at_step_end(trainer):
            return
        # Summed over devices at once, so that a checkpoint needs no collective; nothing waits for the result here.
        own = self.pending.to(pl_module.device, copy=True)
        self.totals += trainer.strategy.reduce(own, reduce_op="sum")
        self.pending.zero_()
        assert isinstance(pl_module, FineTuningModule), "Throughput logs beside the metrics of a smollit module"
        if pl_module.logs_this_step:
            pl_module.report(self.measure(trainer, pl_module.device))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.running_since is not None:
            self.pause(pl_module.device)

    def pause(self, device: torch.device) -> None:
        """Stop the clock once the device has finished its work; the next training batch starts it again."""
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        assert self.running_since is not None
        self.seconds += time.monotonic() - self.running_since
        self.running_since = None

    def measure(self, trainer: Trainer, device: torch.device) -> dict[str, float]:
        """Totals, tokens per second since the last log, and peak memory; the same on all devices."""
        totals = self.totals.tolist()
        self.pause(device)
        own = torch.tensor([self.seconds, peak_bytes(device) / GIB], dtype=torch.float32, device=device)
        seconds, peak = trainer.strategy.reduce(own, reduce_op="max").tolist()
        seen, trained = (now - before for now, before in zip(totals, self.logged, strict=True))
        self.logged, self.seconds, self.running_since = totals, 0.0, time.monotonic()
        return {
            "throughput/tokens_per_second": seen / max(seconds, 1e-9),
            "throughput/trained_tokens_per_second": trained / max(seconds, 1e-9),
            "throughput/seen_tokens": totals[0],
            "throughput/trained_tokens": totals[1],
            "memory/peak_gib": peak,
        }
