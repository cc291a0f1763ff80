"""The command `replay`: one optimizer step of a run made again, with the loss and gradient norm of each of its rows."""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning.pytorch.callbacks import ModelCheckpoint, ThroughputMonitor
from lightning.pytorch.loggers.logger import DummyLogger
from rich.console import Console
from rich.table import Table

from smollit.commands.command import Command, ConfiguredRun
from smollit.commands.replay.step import Replay, ReplayedError, Row
from smollit.modules.lost_steps import NonFiniteStepError
from smollit.training.checkpoints.files import FOLDER
from smollit.training.checkpoints.lineage import checkpoints, lineage_of
from smollit.training.logs.environment import config_of, starts
from smollit.training.logs.non_finite import FILE as DUMP
from smollit.training.logs.non_finite import Dump, NonFiniteDump, numbers, read_dump
from smollit.training.logs.table import FILE, read_table

# Relative, by precision: sums over the rows of several devices are added in another order.
ROUNDING = {"32-true": 1e-4, "64-true": 1e-4, "bf16-mixed": 2e-2}


@dataclass(kw_only=True)
class ReplayCommand(Command):
    """Make one optimizer step of a run again, and show the loss and gradient norm of each of its rows.

    `replay RUN STEP` starts from the newest checkpoint of the run folder before that step, and writes nothing there.
    Without STEP it is the one of non_finite.json, which a run writes that a step ends which is not finite. The exit
    code is 1 if the step's metrics or rows differ from those that the run wrote down. A step of several devices is made
    by one process, with the micro-batches of all of them, and its metrics must agree to rounding.

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
        """RUN [STEP] -> the settings of the run, on one device, without its logger and in a folder of its own."""
        if not words or words[0].startswith("-"):
            return list(words)
        run = Path(words[0]).expanduser()
        if not (run / "config.yaml").is_file():
            raise ValueError(f"{words[0]} is no run folder: it holds no config.yaml, which `fit` writes")
        rest = ["--step", *words[1:]] if len(words) > 1 and words[1].isdigit() else list(words[1:])
        rest = [part for word in rest for part in (word.split("=", 1) if word.startswith("--step=") else [word])]
        if "--step" not in rest:
            rest = ["--step", dumped_step(run), *rest]
        step = next(word for flag, word in zip(rest, [*rest[1:], ""], strict=True) if flag == "--step")
        config = config_of(run, int(step)) if step.isdigit() else run / "config.yaml"
        settings = ["--config", str(config), "--run_folder", words[0], "--trainer.logger", "false"]
        settings += ["--trainer.devices", "1", "--trainer.num_nodes", "1", "--trainer.strategy", "auto"]
        folder = ["--trainer.default_root_dir", str(Path(tempfile.gettempdir(), f"smollit-replay-{os.getpid()}"))]
        return [*settings, *folder, "--trainer.enable_progress_bar", "false", *rest]

    def run(self, run: ConfiguredRun) -> None:
        """Make the steps from the checkpoint on, in a temporary folder."""
        folder = Path(self.run_folder).expanduser()
        checkpoint = newest_before(folder, self.step)
        done = lineage_of(checkpoint) if checkpoint else None
        begun = int(done.step) if done else 0
        devices = check_history(folder, self.step, begun)
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
        trainer = run.trainer
        rounding = ROUNDING.get(str(trainer.precision), ROUNDING["bf16-mixed"])
        replay = Replay(
            self.step,
            with_text=self.text,
            accumulation=as_one_device(run, devices),
            tolerance=rounding if devices > 1 else 0.0,
        )
        make_steps(run, replay, checkpoint)
        if not replay.rows:
            raise ValueError(f"the run ends before step {self.step}: its last one is {trainer.global_step}")
        differing = replay.differs_from_metrics(logged(folder, self.step)) + replay.differs_from(last_dump(folder))
        show(replay.rows, differing, replay.logged, devices=devices, as_json=self.json)
        if differing:
            raise SystemExit(1)


def make_steps(run: ConfiguredRun, replay: Replay, checkpoint: Path | None) -> None:
    """Train up to the step of `replay`, in a folder that is removed afterwards."""
    trainer = run.trainer
    trainer.prepare(run.model)
    trainer.loggers = [DummyLogger()]  # callbacks that log, as LearningRateMonitor, refuse a run without one
    # A monitor counts from where it starts, and its numbers are none of the step's.
    trainer.callbacks = [each for each in trainer.callbacks if not isinstance(each, NonFiniteDump | ThroughputMonitor)]
    for callback in trainer.callbacks:
        if isinstance(callback, ModelCheckpoint):  # one of the config may write into the run folder
            callback.dirpath = str(run.folder / FOLDER)
    trainer.callbacks.append(replay)
    try:
        trainer.fit(run.model, datamodule=run.datamodule, ckpt_path=checkpoint)
    except ReplayedError:
        pass
    except NonFiniteStepError as ended:
        replay.note_bad(ended.bad)
    finally:
        shutil.rmtree(run.folder, ignore_errors=True)


def dumped_step(folder: Path) -> str:
    """The step of non_finite.json in a run folder.

    Raises:
        ValueError: If there is none.
    """
    dump = last_dump(folder)
    if dump is None:
        raise ValueError(
            f"which step of {folder}? Name one, as in `replay {folder} 20`: the folder has no {DUMP} of a step that the"
            " run has not made since"
        )
    return str(dump["step"])


def last_dump(folder: Path) -> Dump | None:
    """The dump of the step that ended the run; None if there is none, or the run has gone past that step since."""
    dump, rows = read_dump(folder), read_table(folder / FILE)
    return None if dump and any(int(row["step"]) >= dump["step"] for row in rows) else dump


def check_history(folder: Path, step: int, begun: int) -> int:
    """The number of devices that made a step of a run.

    Args:
        folder: The run folder.
        step: The step.
        begun: The step of the checkpoint that it is made from; 0 is the beginning.

    Raises:
        ValueError: If there is no such step, or it can't be made from the beginning, or by the settings of one start.
    """
    if step < 1:
        raise ValueError(f"`step` is counted from 1, got {step}")
    before = [start for start in starts(folder) if start["step"] < step]
    if before and not begun and before[0]["step"]:
        raise ValueError(
            f"the run in {folder} began at step {before[0]['step']}, with a checkpoint of another folder, and has none"
            f" before step {step}: copy that checkpoint into {folder / FOLDER}"
        )
    if before and before[-1]["step"] > begun and len({start.get("config") for start in before[-2:]}) > 1:
        raise ValueError(
            f"step {step} was made with other settings than those before step {before[-1]['step']}, where the run"
            f" resumed, and {folder / FOLDER} keeps no checkpoint between these steps: it can't be made again"
        )
    return int(before[-1].get("devices", 1)) if before else 1


def as_one_device(run: ConfiguredRun, devices: int) -> int | None:
    """Let one process draw the rows of each optimizer step that so many devices drew.

    Returns:
        The micro-batches that it accumulates; None leaves that to the settings.

    Raises:
        ValueError: If the rows of a step depend on the number of devices.
    """
    data, trainer = run.datamodule, run.trainer
    if devices > 1 and data.max_batch_tokens is not None:
        raise ValueError(
            f"{devices} devices made this step, and with `data.max_batch_tokens` its rows depend on their number: one"
            " process can't make it again"
        )
    if devices == 1 or data.global_batch_size is not None:
        return None
    micro_batches = trainer.accumulate_grad_batches * devices
    data.global_batch_size = data.train_batch_size * devices  # for which the order of the rows was made
    trainer.accumulate_grad_batches = 1  # open, until the callbacks' `setup`
    return micro_batches


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


def show(rows: list[Row], differing: list[str], metrics: dict[str, float], *, devices: int, as_json: bool) -> None:
    """The rows, the largest gradient first or not finite, and whether the step equals the one that was logged."""
    ordered = sorted(rows, key=lambda row: (math.isfinite(row.gradient_norm), -row.gradient_norm))
    if as_json:
        found = {"rows": [numbers(row._asdict()) for row in ordered], "metrics": numbers(metrics)}
        print(json.dumps(found | {"differing": differing}))
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
        if devices > 1:
            console.print(f"One process draws other random numbers, as for dropout, than {devices} devices did")
    elif devices > 1:
        console.print(f"the metrics agree with those that {devices} devices wrote down, to rounding")
    else:
        console.print("the metrics equal those that the run wrote down, in every digit")
    for name in ("loss", "gradient_norm"):
        if name in metrics:
            console.print(f"{name} of the step: {metrics[name]:g}", markup=False)
