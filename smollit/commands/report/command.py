"""The command `report`: its arguments."""

import json
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from smollit.commands.command import FolderCommand
from smollit.commands.report.page import MARK, write_report
from smollit.commands.report.rows import RowReport, describe_rows, row_report, write_rows
from smollit.commands.report.run import Run, read_run, table
from smollit.commands.report.validated import compared

ROWS = "rows.jsonl"
STYLES = {True: "green", False: "red", None: "default"}


@dataclass(kw_only=True)
class ReportCommand(FolderCommand):
    """Say what runs have learned, and write their curves and tables as one page, also while they run.

    Args:
        output: Folder of report.html and report.md; null takes the first run folder.
        rows: Also say which training rows were never learned, forgotten, fought over, or are likely mislabelled, and
            write rows.jsonl into each run folder.
        json: Print one JSON object instead of lines.
    """

    output: str | None = None
    rows: bool = False
    json: bool = False

    def run(self) -> None:
        """Read the runs, print the verdicts, and write both files."""
        alone = [read_run(folder) for folder in self.folders]
        more = zip(alone, compared(alone), strict=True)
        runs = [run._replace(findings=run.findings + differences) for run, differences in more]
        output = Path(self.output or runs[0].folder).expanduser()
        write_report(runs, output)
        of_rows = {run.folder: row_report(run.folder) for run in runs if self.rows}
        for folder, rows in of_rows.items():
            write_rows(rows, folder / ROWS)
        if self.json:
            found = [as_json(run) for run in runs]
            print(
                json.dumps(
                    [each | rows_as_json(of_rows.get(run.folder)) for run, each in zip(runs, found, strict=True)]
                )
            )
            return
        console = Console()
        for run in runs:
            console.print(run.name, style="bold", markup=False)
            for each in run.findings:
                advice = f" -> {each.advice}" if each.advice else ""
                console.print(
                    f"  {MARK[each.good]} {each.text}{advice}", style=STYLES[each.good], markup=False, highlight=False
                )
            for line in describe_rows(of_rows[run.folder], run.folder) if self.rows else ():
                console.print(f"  {line}", markup=False, highlight=False)
        console.print(f"written: {output / 'report.html'}, {output / 'report.md'}", markup=False, highlight=False)


def rows_as_json(rows: RowReport | None) -> dict[str, object]:
    """The groups of rows for programs."""
    return {"rows": rows.groups} if rows else {}


def as_json(run: Run) -> dict[str, object]:
    """A run for programs."""
    head, rows = table(run)
    return {
        "run": str(run.folder),
        "findings": [each._asdict() for each in run.findings],
        "table": [dict(zip(head, row, strict=True)) for row in rows],
    }
