"""The console output of a run: a start summary, a progress bar, and a filter for notes that do not apply."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.utilities import rank_zero_only

from smollit.data.encoding.report import Report
from smollit.models.sharding import unwrap
from smollit.training.steps import described_data

NOTES = (
    ".*does not have many workers.*",  # collating ids is cheap
    ".*LeafSpec.*",  # Lightning's own use of a deprecated torch name
    ".*using a custom batch sampler .* for prediction.*",  # smollit's gives every row once
    ".*but have no logger configured.*",  # then the metrics are only printed
    ".*your dataloader is not resumable.*",  # it is: the position is in the data module's state
    ".*Total length of `list` across ranks is zero.*",  # `val_split: null` is intended
    ".*when logging on epoch level in distributed setting.*",  # `metrics.values` has summed over the ranks already
)
ADVERTISED = ("litlogger", "litmodels")
CHECKPOINTING = {False: "off", True: "on", "selective": "selective"}


class StartSummary(Callback):
    """Prints parameters, dtype, mode, attention, precision, data, steps, learning rate and the run folder."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        check_lengths(trainer, pl_module)
        self.show(describe(trainer, pl_module))

    @rank_zero_only
    def show(self, named: dict[str, Any]) -> None:
        """Print one line per entry."""
        width = max(map(len, named))
        print("\n".join(f"{name:<{width}}  {value}" for name, value in named.items()), flush=True)


def describe(trainer: Trainer, module: Any) -> dict[str, str]:
    """The entries of the summary, by name."""
    parameters = list(module.policy.parameters())
    trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    total = sum(parameter.numel() for parameter in parameters)
    data = described_data(trainer)
    rows = describe_rows(data.reports if data else {})
    batch = data.train_batch_size if data else 1
    accumulation, world = trainer.accumulate_grad_batches, trainer.world_size
    return {
        "parameters": f"{trainable:,} trainable of {total:,}",
        "weights": str(parameters[0].dtype).removeprefix("torch."),
        "mode": "train" if module.policy.training else "eval",
        "attention": f"{module.attention}, gradient checkpointing {CHECKPOINTING[module.gradient_checkpointing]}",
        "precision": str(trainer.precision),
        "data": rows,
        "batch": f"{batch} x {accumulation} accumulated x {world} devices = {batch * accumulation * world} per step",
        "steps": f"{int(trainer.estimated_stepping_batches):,}, from step {trainer.global_step:,}",
        "learning rate": f"peak {module.learning_rate:g}, {module.schedule}, {module.num_warmup_steps} warm-up steps",
        "run folder": str(trainer.default_root_dir),
    }


def describe_rows(reports: dict[str, Report]) -> str:
    """Rows, tokens and fraction of loss tokens of all parts of the training split."""
    train = [report for name, report in reports.items() if name.split(":")[0] == "train"]
    if not train:
        return "unknown"
    kept, tokens = sum(report.kept for report in train), sum(report.tokens for report in train)
    loss_tokens = sum(report.loss_tokens for report in train)
    return f"{kept:,} rows, {tokens:,} tokens, {loss_tokens / max(tokens, 1):.1%} loss tokens"


def check_lengths(trainer: Trainer, module: Any) -> None:
    """Refuse rows that are longer than the model has positions.

    Raises:
        ValueError: If `data.max_length` is above the model's positions.
    """
    positions = unwrap(module.policy).config.max_position_embeddings
    data = described_data(trainer)
    longest = data.max_length if data else 0
    if longest > positions:
        raise ValueError(f"`data.max_length` is {longest:,}, but the model has {positions:,} positions: lower it")


class ProgressBar(TQDMProgressBar):
    """Lightning's bar with a correct total; Lightning's ignores accumulation when `max_steps` ends the epoch early."""

    @property
    def total_train_batches(self) -> int | float:
        """Micro-batches of this epoch, up to the end of the epoch or of the run."""
        in_epoch = self.trainer.num_training_batches
        if self.trainer.max_epochs != -1 or self.trainer.max_steps < 1:
            return in_epoch
        progress = self.trainer.fit_loop.epoch_loop.batch_progress
        # At the start of an epoch, the counter still holds the batches of the epoch before it.
        done = 0 if progress.is_last_batch else progress.current.completed
        left = self.trainer.max_steps - self.trainer.global_step
        return min(in_epoch, done + left * self.trainer.accumulate_grad_batches)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence them inside the block; filters and loggers are restored afterwards."""
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    with warnings.catch_warnings():
        for note in NOTES:
            warnings.filterwarnings("ignore", note)
        logger.addFilter(_is_no_advertisement)
        try:
            yield
        finally:
            logger.removeFilter(_is_no_advertisement)


def _is_no_advertisement(record: logging.LogRecord) -> bool:
    return not any(name in record.getMessage() for name in ADVERTISED)
