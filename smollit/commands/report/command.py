"""The command `report`: its arguments."""

import json
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from smollit.commands.command import FolderCommand
from smollit.commands.report.page import MARK, write_report
from smollit.commands.report.run import Run, read_run, table

STYLES = {True: "green", False: "red", None: "default"}


@dataclass(kw_only=True)
class ReportCommand(FolderCommand):
    """Say what runs have learned, and write their curves and tables as one page, also while they go on.

    Args:
        output: Folder of report.html and report.md; null takes the first run folder.
        json: Print one JSON object instead of lines.
    """

    output: str | None = None
    json: bool = False

    def run(self) -> None:
        """Read the runs, print the verdicts, and write both files."""
        runs = [read_run(folder) for folder in self.folders]
        output = Path(self.output or runs[0].folder).expanduser()
        write_report(runs, output)
        if self.json:
            print(json.dumps([as_json(run) for run in runs]))
            return
        console = Console()
        for run in runs:
            console.print(run.name, style="bold", markup=False)
            for each in run.findings:
                advice = f" -> {each.advice}" if each.advice else ""
                console.print(
                    f"  {MARK[each.good]} {each.text}{advice}", style=STYLES[each.good], markup=False, highlight=False
                )
        console.print(f"written: {output / 'report.html'}, {output / 'report.md'}", markup=False, highlight=False)


def as_json(run: Run) -> dict[str, object]:
    """A run for programs."""
    head, rows = table(run)
    return {
        "run": str(run.folder),
        "findings": [each._asdict() for each in run.findings],
        "table": [dict(zip(head, row, strict=True)) for row in rows],
    }
