"""The command `estimate`: its arguments."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from smollit.commands.command import Command, ConfiguredRun
from smollit.commands.estimate.estimate import estimate
from smollit.commands.estimate.view import show
from smollit.paths import write_whole


@dataclass(kw_only=True)
class EstimateCommand(Command):
    """Show what a run needs: memory by part and whether it fits, tokens, steps, time.

    Args:
        time_probe: Run a few real optimizer steps, which measure the peak memory and the time of a step.
        json: Write the metrics into this file.
        ckpt_path: Not used; accepted so that one config serves all commands.
    """

    time_probe: bool = True
    json: Path | None = None
    ckpt_path: str | None = None

    def run(self, run: ConfiguredRun) -> None:
        """Estimate the run and print the result."""
        found = estimate(run.trainer, run.model, run.datamodule, time_probe=self.time_probe)
        show(Console(), found)
        if self.json is not None:
            write_whole(self.json, json.dumps({**asdict(found), "peak": found.peak}, indent=2) + "\n")
