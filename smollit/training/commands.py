"""The commands that Lightning does not have: inspect, estimate and export."""

from pathlib import Path
from typing import Literal

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from rich.console import Console

from smollit.commands.export import ExportDtype, export, load_policy
from smollit.commands.inspect.inspect import inspect
from smollit.commands.inspect.run import views


class ExtraCommands(Trainer):
    """What SmollitTrainer does besides training."""

    def export(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | None = None,
        output: str | None = None,
        dtype: ExportDtype = "auto",
    ) -> None:
        """Write a checkpoint as a Hugging Face folder, read it back and compare.

        Args:
            model: The module that made the checkpoint.
            datamodule: Gives the tokenizer and the chat template.
            ckpt_path: The checkpoint; `last` or null takes the newest of the run's folder.
            output: Folder to write; null takes <run folder>/export.
            dtype: dtype of the weights; `auto` takes that of the model that training began with.
        """
        path = Path(self.find_checkpoint(ckpt_path or "last") or "")  # type: ignore[attr-defined]  # a SmollitTrainer
        self.strategy.connect(model)
        model.trainer = self
        self.datamodule = datamodule
        load_policy(model, path)
        template = datamodule.template  # type: ignore[union-attr]  # a ChatDataModule
        export(model, template, Path(output or Path(self.default_root_dir) / "export"), dtype)

    def inspect(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        split: Literal["train", "val", "test"] = "train",
        row: int | None = None,
        num_rows: int = 3,
        find: str | None = None,
        problems: bool = False,
        ids: bool = False,
        histogram: Path | None = None,
        strict: bool = False,
        ckpt_path: str | None = None,
    ) -> None:
        """Show what is trained: rows with trained tokens marked, lengths, what was cut or dropped, warnings.

        Args:
            model: Not used: no weights are loaded.
            datamodule: Whose rows are shown, exactly as training gets them.
            split: Which split.
            row: Show the row of this number, counted from 0, in full.
            num_rows: Number of rows to show.
            find: Show rows whose text holds this.
            problems: Show rows that were dropped, cut, or changed, with the reason.
            ids: Show token ids too.
            histogram: Draw the lengths into this PNG file.
            strict: Exit with 1 if something is wrong.
            ckpt_path: Not used: here so that one config serves all commands.
        """
        console, code = Console(), 0
        for view in views(datamodule)[split]:  # type: ignore[arg-type]  # a ChatDataModule
            code |= inspect(view, row, num_rows, find, problems, ids, histogram, strict, console)
        if code:
            raise SystemExit(code)

    def estimate(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        time_probe: bool = True,
        json: Path | None = None,
        ckpt_path: str | None = None,
    ) -> None:
        """Say what a run will need: memory by part and whether it fits, tokens, steps, time.

        Args:
            model: Whose memory is estimated; nothing of it is kept.
            datamodule: Whose rows are counted, tokenised if need be.
            time_probe: Run a few real passes, to say how long a step lasts.
            json: Write the figures into this file.
            ckpt_path: Not used: here so that one config serves all commands.
        """
        from smollit.commands.estimate.estimate import estimate  # which imports this room

        self.strategy.connect(model)
        model.trainer = self
        estimate(self, model, datamodule, time_probe, json, Console())  # type: ignore[arg-type]  # ours, from the CLI
