"""Progress of a run on the console: a bar in a terminal or a notebook, and plain lines elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar as AnyProgressBar
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from rich.console import Console
from tqdm.contrib.logging import logging_redirect_tqdm

from smollit.batch import Batch
from smollit.metrics import sums
from smollit.modules.stage_metrics import StageMetricsModule
from smollit.training.steps import at_step_end

# Metrics of a line, and of a bar of 80 columns: their formats.
LONG = {"loss": "loss {:.4g}", "rewards/accuracies": "accuracy {:.4g}", "rewards/margins": "margin {:.4g}"}
SHORT = {"loss": "loss {:.3f}", "rewards/accuracies": "acc {:.2f}", "rewards/margins": "margin {:.2f}"}
SHORT_VAL = {"loss": "val {:.3f}"}


def is_interactive() -> bool:
    """Whether a bar can be drawn: in a terminal or a notebook."""
    return sys.stdout.isatty() or Console().is_jupyter


def bar_of(trainer: Trainer) -> AnyProgressBar | None:
    """The progress bar of a trainer."""
    return next((callback for callback in trainer.callbacks if isinstance(callback, AnyProgressBar)), None)  # type: ignore[attr-defined]


@contextmanager
def says(trainer: Trainer, text: str) -> Iterator[None]:
    """Show on the progress bar what the run does inside the block, instead of training."""
    bar = bar_of(trainer)
    if not isinstance(bar, ProgressBar):
        yield
        return
    bar.train_progress_bar.set_postfix_str(text)
    try:
        yield
    finally:
        bar.refresh(trainer)


def metrics_texts(trainer: Trainer, stage: str, formats: dict[str, str]) -> list[str]:
    """`["loss 2.346", "acc 0.53"]` of what a stage has logged last."""
    found = [(text, trainer.logged_metrics.get(f"{stage}/{name}")) for name, text in formats.items()]
    return [text.format(float(value)) for text, value in found if value is not None]


class ProgressBar(TQDMProgressBar):
    """Lightning's bar, which counts the micro-batches of an epoch, with the optimizer steps and the time of the run.

    The loss is there from the first step on. Log lines are written above the bar.
    """

    def __init__(self) -> None:
        super().__init__()
        self.above = ExitStack()
        self.shown_step = 0  # whose metrics are shown

    def on_train_start(self, trainer: Trainer, *args: Any) -> None:  # type: ignore[override]
        super().on_train_start()
        bar, total = self.train_progress_bar, trainer.estimated_stepping_batches
        bar.reset(None if total == float("inf") else int(total))
        bar.initial = bar.n = self.shown_step = trainer.global_step
        bar.refresh()
        self.above.callback(bar.close)
        self.above.enter_context(logging_redirect_tqdm())

    def init_train_tqdm(self) -> Tqdm:
        bar = super().init_train_tqdm()
        bar.bar_format = "{n_fmt}/{total_fmt} |{bar}| {elapsed}<{remaining}{postfix}"
        return bar

    def on_train_epoch_start(self, trainer: Trainer, *args: Any) -> None:
        """The bar is of the run, not of the epoch."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As above."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        if trainer.global_step != self.shown_step:
            self.refresh(trainer)

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        bar = self.train_progress_bar
        if not at_step_end(trainer) or bar.disable:
            return
        if bar.n == bar.initial and isinstance(pl_module, StageMetricsModule):
            total, count = sums(pl_module.metrics_of("train"))["train/loss"].tolist()  # once: the host waits here
            bar.set_postfix_str(SHORT["loss"].format(total / max(count, 1)), refresh=False)
        bar.update(trainer.global_step - bar.n)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.val_progress_bar.close()
        self.reset_dataloader_idx_tracker()
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.refresh(trainer)

    def refresh(self, trainer: Trainer) -> None:
        """Show the metrics that were logged last."""
        self.shown_step = trainer.global_step
        if "train/loss" in trainer.logged_metrics and not self.train_progress_bar.disable:
            found = [*metrics_texts(trainer, "train", SHORT), *metrics_texts(trainer, "val", SHORT_VAL)]
            self.train_progress_bar.set_postfix_str(" ".join(found))

    def on_train_end(self, trainer: Trainer, *args: Any) -> None:  # type: ignore[override]
        self.refresh(trainer)
        self.leave()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.leave()

    def leave(self) -> None:
        """End the line of the bar: what is printed from here on begins a new one."""
        self.above.close()


class ProgressLines(Callback):
    """One line per log and one per validation; the former only where there is no bar."""

    def __init__(self) -> None:
        self.step = 0  # of the last line
        self.tokens = 0  # of this device, since the last line
        self.since = self.started = self.paused = 0.0
        self.first_step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.step = self.first_step = trainer.global_step
        self.started = self.since = time.monotonic()
        self.tokens = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        self.print_log(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.tokens += batch.num_tokens

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.print_log(trainer, pl_module)
        self.paused = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.since += time.monotonic() - self.paused
        text = ", ".join(metrics_texts(trainer, "val", LONG))
        if trainer.state.fn == "fit" and text:
            self.print(trainer, f"validation at step {trainer.global_step:,}: {text}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.print_log(trainer, pl_module)

    def print_log(self, trainer: Trainer, module: LightningModule) -> None:
        """Print the metrics of a step that were logged since the last line."""
        step = trainer.global_step
        is_new = step != self.step and "train/learning_rate" in trainer.logged_metrics
        if not is_new or not isinstance(module, StageMetricsModule) or not module.logs_this_step:
            return
        self.step = step
        now = time.monotonic()
        speed = self.tokens * trainer.world_size / max(now - self.since, 1e-9)
        self.tokens, self.since = 0, now
        if bar_of(trainer) is None:
            total = trainer.estimated_stepping_batches
            of = f" of {int(total):,}" if total != float("inf") else ""
            text = ", ".join(metrics_texts(trainer, "train", LONG))
            rate = float(trainer.logged_metrics["train/learning_rate"])
            left = duration((now - self.started) / (step - self.first_step) * (total - step))
            self.print(trainer, f"step {step:,}{of}: {text}, rate {rate:.3g}, {speed:,.0f} tokens/s, {left} left")

    def print(self, trainer: Trainer, text: str) -> None:
        """Print above the bar, or where there is none."""
        bar = bar_of(trainer)
        if trainer.is_global_zero:
            print(text, flush=True) if bar is None else bar.print(text)


def duration(seconds: float) -> str:
    """`0:36`, `1:02:03`; `?` if nobody knows."""
    if seconds == float("inf"):
        return "?"
    return Tqdm.format_interval(int(seconds)).removeprefix("0")
