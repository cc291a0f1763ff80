"""The step that `replay` makes again: its rows are measured before it, and the run ends after it."""

from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from smollit.batch import Batch
from smollit.data import ChatDataModule
from smollit.models.sharding import gradient_norm
from smollit.modules import FineTuningModule
from smollit.modules.lost_steps import BadStep
from smollit.training.logs.non_finite import Dump, rows_of
from smollit.training.steps import data_module


class Row(NamedTuple):
    """One row of the step.

    Args:
        row: Row number in the training split.
        tokens: Number of positions.
        loss_tokens: Number of loss tokens.
        loss: Mean loss of the row, under the weights before the step, without dropout.
        gradient_norm: Norm of the gradient of that mean.
        text: The row's text; None unless it is asked for.
    """

    row: int
    tokens: int
    loss_tokens: int
    loss: float
    gradient_norm: float
    text: str | None


class ReplayedError(Exception):
    """The step has been made: the run ends here."""


class Replay(Callback):
    """Measures the rows of one optimizer step before it is made, and ends the run after it.

    Args:
        step: The step, from 1.
        with_text: Keep the text of the rows.
        accumulation: Micro-batches of an optimizer step, of all devices that made it; None takes the trainer's.
        tolerance: By how much metrics may differ, relatively; 0 is not in any digit.
    """

    def __init__(self, step: int, *, with_text: bool, accumulation: int | None, tolerance: float) -> None:
        self.step = step
        self.with_text = with_text
        self.accumulation = accumulation
        self.tolerance = tolerance
        self.batches: list[Batch] = []
        self.rows: list[Row] = []
        self.logged: dict[str, float] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Accumulate what all devices of the run accumulated together."""
        if self.accumulation is not None:
            trainer.accumulate_grad_batches = self.accumulation

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep the micro-batches of the step."""
        self.end(trainer)
        if trainer.global_step == self.step - 1:
            self.batches.append(batch)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Measure each row under the weights of the step before; gradients and random state are put back."""
        if trainer.global_step != self.step - 1:
            return
        assert isinstance(pl_module, FineTuningModule)
        gradients = [parameter.grad for parameter in pl_module.policy.parameters()]
        with torch.random.fork_rng(), torch.enable_grad():
            pl_module.policy.eval()
            for batch in self.batches:
                for index in range(batch.num_examples):
                    self.rows.append(self.measure(pl_module, batch.example(index)))
            pl_module.policy.train()
        pl_module.metrics_of("test").reset()
        for parameter, gradient in zip(pl_module.policy.parameters(), gradients, strict=True):
            parameter.grad = gradient

    def measure(self, module: FineTuningModule, batch: Batch) -> Row:
        """Loss and gradient norm of one row."""
        module.policy.zero_grad(set_to_none=True)
        with module.trainer.precision_plugin.forward_context():
            loss, count = module.step(batch, "test")
        mean = loss / torch.as_tensor(count).clamp(min=1)
        mean.backward()
        norm = float(gradient_norm(module.policy))
        data, text = data_module(module.trainer), None
        if self.with_text and isinstance(data, ChatDataModule):
            text = str(data.template.tokenizer.decode(batch.input_ids[0].tolist()))
        return Row(int(batch.example_ids), batch.num_tokens, batch.num_loss_tokens, mean.item(), norm, text)

    def note_bad(self, bad: BadStep) -> None:
        """Keep what is known of a step that is not finite, under the names of a dump."""
        self.logged = {"loss": bad.loss, "gradient_norm": bad.gradient_norm}

    def differs_from(self, dump: Dump | None) -> list[str]:
        """What differs from the dump of this step; nothing if there is none."""
        if dump is None or dump["step"] != self.step:
            return []
        expected = {name: float(dump[name]) for name in ("loss", "gradient_norm")}
        is_finite = self.logged.keys() != expected.keys()
        ours = Counter(row["sha256"] for row in rows_of(self.batches))
        is_other = bool(ours - Counter(row["sha256"] for row in dump["rows"]))
        return (["loss"] if is_finite else self.differs_from_metrics(expected)) + ["rows"] * is_other

    def differs_from_metrics(self, expected: dict[str, float]) -> list[str]:
        """Names of the metrics that differ from those that the run wrote down."""
        names = sorted(self.logged.keys() & expected.keys())
        if self.tolerance:  # partial micro-batches at the end of an epoch count otherwise
            names = [name for name in names if name != "train/epoch"]
        return [name for name in names if not is_equal(self.logged[name], expected[name], self.tolerance)]

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the run."""
        self.end(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the run."""
        self.end(trainer)

    def end(self, trainer: Trainer) -> None:
        """End the run after the step, when the module has logged it: in the first hook that follows."""
        if self.rows and trainer.global_step == self.step:
            found = trainer.logged_metrics
            self.logged = {name: float(value) for name, value in found.items() if name.startswith("train/")}
            raise ReplayedError


def is_equal(found: float, expected: float, tolerance: float) -> bool:
    """Whether two values are equal in all digits of fp32, or relatively by a tolerance."""
    return bool(np.isclose(np.float32(found), np.float32(expected), rtol=tolerance, atol=0.0, equal_nan=True))
