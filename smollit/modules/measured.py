"""MeasuredModule: metrics of each stage and of each named validation set, and where their figures go."""

from abc import abstractmethod
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchmetrics import MetricCollection

from smollit.metrics import add_counts, add_sums, sums, values

STAGES = ("train", "val", "test")


class MeasuredModule(LightningModule):
    """A LightningModule whose metrics are sums and counts, logged as means over all that was seen."""

    bar_names: tuple[str, ...] = ("loss",)  # what the progress bar shows

    def __init__(self) -> None:
        super().__init__()
        self.metrics = nn.ModuleDict({f"{stage}/": self.make_metrics(f"{stage}/") for stage in STAGES})
        self.val_stages = ["val"]

    @abstractmethod
    def make_metrics(self, prefix: str) -> MetricCollection:
        """The metrics of one stage, all on sums and counts."""

    def stage_metrics(self, stage: str) -> MetricCollection:
        """What a stage (`train`, `val`, `val/<set>`, `test`) has counted since its last log."""
        collection = self.metrics[f"{stage}/"]
        assert isinstance(collection, MetricCollection)
        return collection

    @property
    def logs_this_step(self) -> bool:
        """Whether the optimizer step that was just done ends an interval of logs."""
        return self.trainer.global_step % self.trainer.log_every_n_steps == 0  # type: ignore[attr-defined]

    def unlogged(self) -> dict[str, Tensor]:
        """At the end of an optimizer step: [total, count] of each training metric that no log will have told."""
        return {} if self.logs_this_step else sums(self.stage_metrics("train"))

    def go_on_from(self, unlogged: dict[str, list[float]]) -> None:
        """Count on from what `unlogged` said where a checkpoint stands."""
        collection = self.stage_metrics("train")
        collection.reset()
        add_sums(collection, unlogged)

    def setup(self, stage: str) -> None:
        """Metrics for each named validation set of the data module; their sums make up those of `val`."""
        names = getattr(self.trainer.datamodule, "val_names", ())  # type: ignore[attr-defined]
        self.val_stages = [f"val/{name}" for name in names] or ["val"]
        for name in self.val_stages:
            if f"{name}/" not in self.metrics:
                self.metrics[f"{name}/"] = self.make_metrics(f"{name}/").to(self.device)

    def on_validation_epoch_end(self) -> None:
        """Log the means over each named set, and over all rows together."""
        total, found = self.stage_metrics("val"), dict[str, Tensor]()
        for name in self.val_stages:
            if name != "val":
                add_counts(total, self.stage_metrics(name))
                found |= values(self.stage_metrics(name))
        found |= values(total)
        # `num_sanity_val_steps: -1` validates on everything before the first step: those figures are worth keeping.
        if not self.trainer.sanity_checking or self.trainer.num_sanity_val_steps == float("inf"):
            self.report(found)

    def on_test_epoch_end(self) -> None:
        """Log the means over the whole split."""
        self.report(values(self.stage_metrics("test")))

    def report(self, named: dict[str, Any]) -> None:
        """Send values, equal on all ranks, to the loggers, the progress bar and `callback_metrics`.

        The x axis is the number of optimizer steps done, everywhere.
        """
        fitting = self.trainer.training or self.trainer.state.fn == "fit"
        for name, value in named.items():
            on_bar = name.partition("/")[2] in self.bar_names
            # Lightning's own x axis is one behind while fitting, so only other commands use it.
            self.log(name, value, prog_bar=on_bar, logger=not fitting, batch_size=1, rank_zero_only=False)
        if fitting:
            metrics = {name: float(value) for name, value in named.items()}
            self.trainer.logged_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})
            for logger in self.trainer.loggers:
                logger.log_metrics(metrics, self.trainer.global_step)
