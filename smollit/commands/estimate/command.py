"""The command `estimate`: its arguments."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from smollit.commands.command import Command, ConfiguredRun
from smollit.commands.estimate.estimate import estimate


@dataclass(kw_only=True)
class EstimateCommand(Command):
    """Say what a run will need: memory by part and whether it fits, tokens, steps, time.

    Args:
        time_probe: Run a few real passes, to say how long a step lasts.
        json: Write the metrics into this file.
        ckpt_path: Not used: here so that one config serves all commands.
    """

    time_probe: bool = True
    json: Path | None = None
    ckpt_path: str | None = None

    def run(self, run: ConfiguredRun) -> None:
        """Estimate the run and print the result."""
        run.trainer.strategy.connect(run.model)
        run.model.trainer = run.trainer
        estimate(run.trainer, run.model, run.datamodule, self.time_probe, self.json, Console())
