"""EndSummary: what a run has learned, where its files are, and what to type next, printed after its last step."""

import shlex
import time
from collections.abc import Callable
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from smollit.losses.settings import starts_at_ln_2
from smollit.training.logs.progress import duration
from smollit.training.logs.start_summary import show
from smollit.training.logs.table import read_table, use_table
from smollit.training.steps import described_data
from smollit.training.stop import SaveAtEnd
from smollit.verdict import Curves, curve, verdict

MEASURES = {  # name and what is better
    "val/loss": ("validation loss", min),
    "val/rewards/accuracies": ("accuracy", max),
    "val/rewards/margins": ("margin", max),
}


class EndSummary(Callback):
    """Prints at most ten lines when training has ended; not after a stop, and not if there was nothing to do."""

    def __init__(self) -> None:
        self.started: float | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.started = time.monotonic()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        is_rehearsal = trainer.fast_dev_run  # type: ignore[attr-defined]
        if self.started is None or is_rehearsal or not trainer.is_global_zero:
            return
        took = duration(time.monotonic() - self.started)
        self.started = None
        show({"done": f"{trainer.global_step:,} steps, {took} since this start"} | learned(trainer) | places(trainer))


def learned(trainer: Trainer) -> dict[str, str]:
    """First, last and best validation, from the table of the run: also over earlier starts."""
    tables = [use_table(logger) for logger in trainer.loggers if isinstance(logger, CSVLogger)]
    rows = read_table(tables[-1].path) if tables else []
    curves = [(label, better, curve(rows, name)) for name, (label, better) in MEASURES.items()]
    data = described_data(trainer)
    reports = data.reports if data else {}
    num_train, num_val = (
        sum(report.kept for name, report in reports.items() if name.split(":")[0] == split) or None
        for split in ("train", "val")
    )
    starts_at = starts_at_ln_2(trainer.lightning_module.hparams)
    findings = verdict(Curves(rows, num_train=num_train, num_val=num_val, starts_at_ln_2=starts_at))
    problems = [found for found in findings if found.good is False]
    said = {"verdict": f"{problems[0].text} -> {problems[0].advice}"} if problems else {}
    return {label: change(points, better) for label, better, points in curves if points} | said


def change(points: dict[int, float], better: Callable[..., float]) -> str:
    """`5.0321 at step 0 -> 2.7912 at step 48; best 2.7402 at step 40`."""
    first, last = min(points), max(points)
    best = int(better(points, key=points.__getitem__))
    shown = {step: f"{round(points[step], 4) + 0.0:.4f} at step {step:,}" for step in (first, last, best)}
    text = " -> ".join(dict.fromkeys([shown[first], shown[last]]))
    return text if points[best] == points[last] else f"{text}; best {shown[best]}"


def places(trainer: Trainer) -> dict[str, str]:
    """Where the files of a run are, and the commands that use them."""
    folder = Path(trainer.default_root_dir)
    found, typed = {"run folder": str(folder)}, shlex.quote(str(folder))
    if any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers):
        found["curves"] = f"tensorboard --logdir {typed}"
    if (folder / "export" / "config.json").is_file():
        found["export"] = f"{folder / 'export'}, for transformers and for the next run"
    config = folder / "config.yaml"
    if config.is_file():
        found["report"] = f"python -m smollit report {typed}"
        to_export = f"python -m smollit export --config {shlex.quote(str(config))} --ckpt_path last"
        if "export" in found:
            found["next"] = f"python -m smollit chat {shlex.quote(str(folder / 'export'))}"
        elif any(isinstance(callback, SaveAtEnd) and callback.stop.folder for callback in trainer.callbacks):  # type: ignore[attr-defined]
            found["next"] = to_export
    return found
