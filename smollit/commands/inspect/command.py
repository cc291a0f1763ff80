"""The command `inspect`: its arguments, and the splits that it shows."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console

from smollit.commands.command import Command, ConfiguredRun
from smollit.commands.inspect.inspect import inspect
from smollit.commands.inspect.run import views


@dataclass(kw_only=True)
class InspectCommand(Command):
    """Show rows with their loss tokens, lengths, what was cut or dropped, and warnings.

    Args:
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

    split: Literal["train", "val", "test"] = "train"
    row: int | None = None
    num_rows: int = 3
    find: str | None = None
    problems: bool = False
    ids: bool = False
    histogram: Path | None = None
    strict: bool = False
    ckpt_path: str | None = None

    def run(self, run: ConfiguredRun) -> None:
        """Show every part of the split; exit with 1 if `strict` and something is wrong."""
        console, code = Console(), 0
        for view in views(run.datamodule)[self.split]:
            code |= inspect(
                view, self.row, self.num_rows, self.find, self.problems, self.ids, self.histogram, self.strict, console
            )
        if code:
            raise SystemExit(code)
