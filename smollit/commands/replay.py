"""The command `replay`: one optimizer step of a run made again, with the loss and gradient norm of each of its rows."""

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from rich.console import Console
from rich.table import Table

from smollit.batch import Batch
from smollit.commands.command import Command, ConfiguredRun
from smollit.data import ChatDataModule
from smollit.models.sharding import gradient_norm
from smollit.modules import FineTuningModule
from smollit.modules.lost_steps import NonFiniteError
from smollit.training.checkpoints.files import FOLDER
from smollit.training.checkpoints.lineage import checkpoints, lineage_of
from smollit.training.logs.table import FILE, read_table


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


@dataclass(kw_only=True)
class ReplayCommand(Command):
    """Make one optimizer step of a run again, and show the loss and gradient norm of each of its rows.

    `replay RUN STEP` starts from the newest checkpoint of the run folder before that step, and writes nothing there.
    The exit code is 1 if the metrics of the step differ from those that the run logged.

    Args:
        step: The optimizer step, from 1.
        run_folder: The run folder.
        text: Also show the text of each row.
        json: Print one JSON object instead of a table.
        ckpt_path: Not used; accepted so that one config serves all commands.
    """

    step: int
    run_folder: str
    text: bool = False
    json: bool = False
    ckpt_path: str | None = None

    @classmethod
    def words(cls, words: Sequence[str]) -> list[str]:
        """RUN STEP -> the settings of the run, without its logger and in a folder that is not the run's."""
        if len(words) < 2 or words[0].startswith("-") or not words[1].isdigit():
            return list(words)
        config = Path(words[0]).expanduser() / "config.yaml"
        if not config.is_file():
            raise ValueError(f"{words[0]} is no run folder: it holds no config.yaml, which `fit` writes")
        settings = ["--config", str(config), "--step", words[1], "--run_folder", words[0], "--trainer.logger", "false"]
        folder = ["--trainer.default_root_dir", str(Path(tempfile.gettempdir(), f"smollit-replay-{os.getpid()}"))]
        return [*settings, *folder, "--trainer.enable_progress_bar", "false", *words[2:]]

    def run(self, run: ConfiguredRun) -> None:
        """Make the steps from the checkpoint on, in a temporary folder."""
        folder = Path(self.run_folder).expanduser()
        checkpoint = newest_before(folder, self.step)
        done = lineage_of(checkpoint) if checkpoint else None
        begun = int(done.step) if done else 0
        say = Console(stderr=self.json)
        say.print(
            f"step {self.step} of {folder}: {self.step - begun} steps from "
            + (f"{checkpoint}, of step {begun}" if checkpoint else "the beginning"),
            markup=False,
        )
        if run.folder.is_dir() and any(run.folder.iterdir()):
            raise ValueError(
                f"`replay` works in `trainer.default_root_dir` and removes it afterwards, and {run.folder} holds files:"
                " give a folder that is empty or new"
            )
        replay, trainer = Replay(self.step, with_text=self.text), run.trainer
        for callback in trainer.callbacks:
            if isinstance(callback, ModelCheckpoint):  # one of the config may write into the run folder
                callback.dirpath = str(run.folder / FOLDER)
        trainer.callbacks.append(replay)
        try:
            trainer.fit(run.model, datamodule=run.datamodule, ckpt_path=checkpoint)
        except (ReplayedError, NonFiniteError) as ended:
            if isinstance(ended, NonFiniteError):
                say.print(str(ended), markup=False)
        finally:
            shutil.rmtree(run.folder, ignore_errors=True)
        if not replay.rows:
            raise ValueError(f"the run ends before step {self.step}: its last one is {trainer.global_step}")
        differing = compare(replay.logged, logged(folder, self.step))
        show(replay.rows, differing, replay.logged, as_json=self.json)
        if differing:
            raise SystemExit(1)


class Replay(Callback):
    """Measures the rows of one optimizer step before it is made, and ends the run after it.

    Args:
        step: The step, from 1.
        with_text: Keep the text of the rows.
    """

    def __init__(self, step: int, *, with_text: bool) -> None:
        self.step = step
        self.with_text = with_text
        self.batches: list[Batch] = []
        self.rows: list[Row] = []
        self.logged: dict[str, float] = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep the micro-batches of the step."""
        self.end(trainer)
        if trainer.global_step == self.step - 1:
            self.batches.append(batch)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Measure each row under the weights of the step before; gradients and random state are put back."""
        if trainer.global_step != self.step - 1:
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(pl_module, FineTuningModule)
        gradients = [parameter.grad for parameter in pl_module.policy.parameters()]
        numbers = [int(number) for batch in self.batches for number in batch.example_ids.tolist()]
        with torch.random.fork_rng(), torch.enable_grad():
            pl_module.policy.eval()
            for number, batch in row_batches(data, numbers):
                on_device = trainer.strategy.batch_to_device(batch)
                self.rows.append(self.measure(pl_module, data, number, on_device))
            pl_module.policy.train()
        pl_module.metrics_of("test").reset()
        for parameter, gradient in zip(pl_module.policy.parameters(), gradients, strict=True):
            parameter.grad = gradient

    def measure(self, module: FineTuningModule, data: ChatDataModule, number: int, batch: Batch) -> Row:
        """Loss and gradient norm of one row."""
        module.policy.zero_grad(set_to_none=True)
        with module.trainer.precision_plugin.forward_context():
            loss, count = module.step(batch, "test")
        mean = loss / torch.as_tensor(count).clamp(min=1)
        mean.backward()
        norm = float(gradient_norm(module.policy))
        text = str(data.template.tokenizer.decode(batch.input_ids[0].tolist())) if self.with_text else None
        return Row(number, batch.num_tokens, batch.num_loss_tokens, mean.item(), norm, text)

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


def row_batches(data: Any, numbers: Sequence[int]) -> list[tuple[int, Batch]]:
    """A batch of its own for each row.

    Raises:
        ValueError: If the data are streamed, so that rows can't be fetched by their numbers.
    """
    if not isinstance(data, ChatDataModule) or "train" not in data.examples:
        raise ValueError("`replay` fetches rows by their numbers, which `data.streaming` does not have")
    documents, wanted = data.documents("train"), dict[int, list[list[int]]]()
    for index, number in enumerate(documents.row_numbers()):
        wanted.setdefault(number, []).append([index])
    return [(number, data.collate(documents.__getitems__(wanted[number]))) for number in dict.fromkeys(numbers)]


def newest_before(folder: Path, step: int) -> Path | None:
    """The newest checkpoint of a run folder before a step, or None."""
    for path in checkpoints(folder / FOLDER):
        lineage = lineage_of(path)
        if lineage and lineage.step < step:
            return path
    return None


def logged(folder: Path, step: int) -> dict[str, float]:
    """The training metrics that the run logged at a step; none if it did not log there."""
    rows = [row for row in read_table(folder / FILE) if row["step"] == str(step)]
    return {name: float(value) for row in rows for name, value in row.items() if name.startswith("train/") and value}


def compare(found: dict[str, float], expected: dict[str, float]) -> list[str]:
    """Names of the metrics that differ in any digit of fp32."""
    return [
        name for name in sorted(found.keys() & expected.keys()) if np.float32(found[name]) != np.float32(expected[name])
    ]


def show(rows: list[Row], differing: list[str], metrics: dict[str, float], *, as_json: bool) -> None:
    """The rows, the largest gradient first, and whether the step equals the one that was logged."""
    ordered = sorted(rows, key=lambda row: -row.gradient_norm)
    if as_json:
        print(json.dumps({"rows": [row._asdict() for row in ordered], "metrics": metrics, "differing": differing}))
        return
    console, table = Console(), Table("row", "tokens", "loss tokens", "loss", "gradient norm")
    for row in ordered:
        table.add_row(
            f"{row.row:,}", str(row.tokens), str(row.loss_tokens), f"{row.loss:.5g}", f"{row.gradient_norm:.4g}"
        )
    console.print(table)
    for row in ordered:
        if row.text is not None:
            console.print(f"row {row.row}: {row.text}", markup=False)
    if not metrics:
        console.print("the run did not log at this step")
    elif differing:
        console.print(f"NOT the step that was logged: {', '.join(differing)} differ", style="red", markup=False)
    else:
        console.print("the metrics equal those that were logged, in every digit")
