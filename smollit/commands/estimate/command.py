"""The command `estimate`: its arguments."""

from dataclasses import dataclass
from pathlib import Path

from smollit.commands.command import Command, ConfiguredRun
from smollit.commands.estimate.estimate import estimate


@dataclass(kw_only=True)
class EstimateCommand(Command):
    """Show what a run needs: memory by part and whether it fits, tokens, steps, time.

    Args:
        time_probe: Run a few real optimizer steps, which measure the peak of memory and the time of a step.
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
        estimate(run.trainer, run.model, run.datamodule, time_probe=self.time_probe, path=self.json)
