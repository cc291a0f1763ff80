"""StageMetricsModule: the metrics of each stage and of each named validation set, and their logging."""

from abc import abstractmethod
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torchmetrics import MetricCollection

from smollit.batch import TokenSource
from smollit.metrics import add_collection, add_sums, sums, values

STAGES = ("train", "val", "test")


class StageMetricsModule(LightningModule):
    """A LightningModule whose metrics are sums and counts, logged as means over all examples since the last log."""

    bar_names: tuple[str, ...] = ("loss",)  # metrics on the progress bar

    def __init__(self) -> None:
        super().__init__()
        self.metrics = nn.ModuleDict({f"{stage}/": self.make_metrics(f"{stage}/") for stage in STAGES})
        self.val_stages = ["val"]
        self.loaded_step: int | None = None  # of the checkpoint whose weights these are, until they are trained

    @abstractmethod
    def make_metrics(self, prefix: str) -> MetricCollection:
        """The metrics of one stage, all of them a MeanOfSums."""

    def metrics_of(self, stage: str) -> MetricCollection:
        """The metrics of a stage (`train`, `val`, `val/<set>`, `test`) since its last log."""
        collection = self.metrics[f"{stage}/"]
        assert isinstance(collection, MetricCollection)
        return collection

    @property
    def trainer_or_none(self) -> Trainer | None:
        """The trainer, or None while the module is used without one."""
        try:
            return self.trainer
        except RuntimeError:  # not attached to a trainer
            return None

    @property
    def token_source(self) -> TokenSource | None:
        """The data module, if it is a TokenSource."""
        trainer = self.trainer_or_none
        data = trainer.datamodule if trainer else None  # type: ignore[attr-defined]  # Lightning declares it nowhere
        return data if isinstance(data, TokenSource) else None

    @property
    def logs_this_step(self) -> bool:
        """Whether the optimizer step that has just finished ends a logging interval; an interval of 0 never ends."""
        interval: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return interval > 0 and self.trainer.global_step % interval == 0

    @property
    def step_of_weights(self) -> int:
        """Number of optimizer steps that made the weights: the x axis of all metrics."""
        return self.trainer.global_step if self.loaded_step is None else self.loaded_step

    def pending_metrics(self) -> dict[str, Tensor]:
        """At the end of an optimizer step: [total, count] of each training metric that is not logged yet."""
        return {} if self.logs_this_step else sums(self.metrics_of("train"))

    def restore_pending_metrics(self, pending: dict[str, list[float]]) -> None:
        """Set the training metrics to what `pending_metrics` returned when the checkpoint was saved."""
        collection = self.metrics_of("train")
        collection.reset()
        add_sums(collection, pending)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note the step: Lightning restores its own counters for `fit` only."""
        self.loaded_step = checkpoint.get("global_step")

    def on_train_start(self) -> None:
        """From here on, the trainer counts the steps."""
        self.loaded_step = None

    def setup(self, stage: str) -> None:
        """Make metrics for each named validation set of the data module; their sums make up those of `val`."""
        names = self.token_source.val_names if self.token_source else ()
        self.val_stages = [f"val/{name}" for name in names] or ["val"]
        for name in self.val_stages:
            if f"{name}/" not in self.metrics:
                self.metrics[f"{name}/"] = self.make_metrics(f"{name}/").to(self.device)

    def on_validation_epoch_end(self) -> None:
        """Log the means over each named set, and over all examples together."""
        total, found = self.metrics_of("val"), dict[str, Tensor]()
        for name in self.val_stages:
            if name != "val":
                add_collection(total, self.metrics_of(name))
                found |= values(self.metrics_of(name))
        found |= values(total)
        # `num_sanity_val_steps: -1` runs a full validation before the first step: those metrics are logged.
        if not self.trainer.sanity_checking or self.trainer.num_sanity_val_steps == float("inf"):
            self.report(found)

    def on_test_epoch_end(self) -> None:
        """Log the means over the whole split."""
        self.report(values(self.metrics_of("test")))

    def report(self, named: dict[str, Any]) -> None:
        """Send values, equal on all ranks, to the loggers, the progress bar and `callback_metrics`.

        The x axis is always the number of optimizer steps that made the weights; Lightning's own is one step behind.
        """
        fitting = self.trainer.training or self.trainer.state.fn == "fit"
        if not fitting:  # Lightning logs what validate and test return, and takes this name for the x axis
            named = named | {"step": float(self.step_of_weights)}
        # The host waits here, once: Lightning reads what is on the progress bar after each micro-batch.
        on_cpu = {name: value.cpu() if isinstance(value, Tensor) else value for name, value in named.items()}
        for name, value in on_cpu.items():
            on_bar, each = name.partition("/")[2] in self.bar_names, torch.as_tensor(value)
            self.log(name, each, prog_bar=on_bar, logger=not fitting, batch_size=1, rank_zero_only=False)
        if fitting:
            metrics = {name: float(value) for name, value in on_cpu.items()}
            self.trainer.logged_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})
            for logger in self.trainer.loggers:
                logger.log_metrics(metrics, self.trainer.global_step)
