"""The command `inspect`: rows as training uses them, their changes, and findings."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table
from rich.text import Text

from smollit.commands.command import Command, ConfiguredRun
from smollit.commands.console import is_plain, say, visible
from smollit.commands.inspect.findings import Finding, find_all
from smollit.commands.inspect.pieces import InspectedRow, inspect_row
from smollit.commands.inspect.print_row import legend, print_row
from smollit.commands.inspect.responses import with_shared_prompts
from smollit.commands.inspect.split_view import SplitView, views
from smollit.commands.inspect.template_view import show_template
from smollit.data.sources.readers import RAW

SOURCE_SHOWN = 600  # characters of a row that can't be rendered
MARKS = {"wrong": ("✗", "bold red"), "note": ("!", "yellow")}


@dataclass(kw_only=True)
class InspectCommand(Command):
    """Show rows with their loss tokens, lengths, what was truncated or dropped, and warnings.

    Args:
        split: The split to show.
        template: Show how loss spans are found in this chat template, a Jinja file or a model's name or folder, and
            verify them on chats of many shapes. It needs no config.
        row: Show the row of this number, counted from 0, in full.
        num_rows: Number of rows to show.
        find: Show rows whose rendered text contains this.
        problems: Show rows that were dropped, truncated, or had control text escaped, with the reason.
        ids: Show token ids too.
        histogram: Draw the lengths into this PNG file.
        json: Write the counts and the findings into this file.
        strict: Exit with 1 if there are errors.
        in_full: Tokenize all rows of a large split that the cache lacks, and not only the first ones.
        ckpt_path: Not used; accepted so that one config serves all commands.
    """

    split: Literal["train", "val", "test"] = "train"
    template: str | None = None
    row: int | None = None
    num_rows: int = 3
    find: str | None = None
    problems: bool = False
    ids: bool = False
    histogram: Path | None = None
    json: Path | None = None
    strict: bool = False
    in_full: bool = False
    ckpt_path: str | None = None

    def run(self, run: ConfiguredRun) -> None:
        """Show every part of the split.

        Raises:
            ValueError: If there is no such split.
            SystemExit: With code 1, if `strict` and there are errors.
        """
        if self.template is not None:
            self.run_on_template(run.datamodule.tokenizer_name)
            return
        shown = views(run.datamodule, in_full=self.in_full)[self.split]
        if not shown:
            raise ValueError(f"there is no split to show: set `data.{self.split}_split`")
        findings = {view.name: self.show(view, Console()) for view in shown}
        if self.json is not None:
            write_json(self.json, shown, findings)
        if self.strict and any(finding.severity == "wrong" for found in findings.values() for finding in found):
            raise SystemExit(1)

    @classmethod
    def run_alone(cls, words: Sequence[str]) -> None:
        """Show a template, which needs no config, and exit."""
        if not any(word.split("=")[0] == "--template" for word in words) or "--config" in words:
            return
        parser = ArgumentParser(prog="smollit inspect")
        names = parser.add_class_arguments(cls, instantiate=False)
        given = parser.parse_args(["--strict=true" if word == "--strict" else word for word in words])
        cls(**{name: given[name] for name in names}).run_on_template(None)
        raise SystemExit(0)

    def run_on_template(self, tokenizer_name: str | None) -> None:
        """Show how loss spans are found in a template, and what it makes of many chats.

        Raises:
            SystemExit: With code 1, if `strict` and a span is wrong.
        """
        assert self.template is not None
        if not show_template(self.template, tokenizer_name, Console()) and self.strict:
            raise SystemExit(1)

    def show(self, view: SplitView, console: Console) -> list[Finding]:
        """Print a part of a split; return the findings.

        Raises:
            ValueError: If there is no such row, or no such number of rows.
        """
        if self.num_rows < 0:
            raise ValueError(f"`num_rows` must be at least 0, got {self.num_rows}")
        is_known = view.num_sampled is None
        if self.row is not None and (self.row < 0 or (is_known and self.row >= view.num_rows)):
            raise ValueError(f"split {view.name} has rows 0 to {view.num_rows - 1:,}, and no row {self.row}")
        if self.row is None:
            say(console, view.report.summary(view.name) + "\n")
            if not is_known:
                say(console, f"only the first {view.num_sampled:,} rows: --in_full tokenizes all of them\n")
        say(console, legend(is_plain(console)))
        rows = self.choose(view)
        for row in rows:
            self._print(console, view, row)
        findings = find_all(view)
        if self.row is None:
            say(console, f"{len(rows):,} {'row' if len(rows) == 1 else 'rows'} shown. {self._more(view)}\n")
        if self.row is None or self.strict:
            print_findings(console, findings)
        if self.histogram is not None:
            draw_histogram(console, view, self.histogram)
        return findings

    def choose(self, view: SplitView) -> list[InspectedRow]:
        """The requested rows: by number, by text, those with a problem, or the first good ones."""
        if self.row is not None:
            return self._inspected(view, self.row)
        numbers: Iterable[int] = view.problems() if self.problems else view.column("row").tolist()
        if self.find is not None and not self.problems:
            numbers = range(view.num_rows)
        if not len(view.examples):
            numbers = range(view.num_rows)  # none is good: show dropped ones instead
        return list(islice(self._matching(view, numbers), self.num_rows))

    def _inspected(self, view: SplitView, number: int) -> list[InspectedRow]:
        return with_shared_prompts(inspect_row(view.encoder, view.row(number), number))

    def _matching(self, view: SplitView, numbers: Iterable[int]) -> Iterator[InspectedRow]:
        for number in dict.fromkeys(numbers):  # a row that becomes several examples is shown once
            for row in self._inspected(view, number):
                if self.find is None or self.find in "".join(piece.text for piece in row.pieces):
                    yield row

    def _print(self, console: Console, view: SplitView, row: InspectedRow) -> None:
        in_full = self.row is not None or self.find is not None
        print_row(console, view.name, row, view.encoder.template.tokenizer, in_full=in_full, ids=self.ids)
        if not row.pieces:  # it never became a chat
            source = view.row(row.index)
            say(console, f"    {source.get(RAW, source)!s:.{SOURCE_SHOWN}}\n")

    def _more(self, view: SplitView) -> str:
        count = len(view.problems())
        if self.problems:
            return f"{count:,} of {view.num_rows:,} were dropped, truncated or escaped"
        if self.find is not None:
            return "--num_rows shows more"
        rest = f"--problems the {count:,} that were" if count else "none was"
        return f"--row N shows one in full, {rest} dropped, truncated or escaped"


def print_findings(console: Console, findings: list[Finding]) -> None:
    """Print the findings, a paragraph each."""
    if not any(finding.severity == "wrong" for finding in findings):
        say(console, "nothing looks wrong")
    for finding in findings:
        mark, style = MARKS[finding.severity]
        if is_plain(console):
            say(console, f"{mark} {finding.text}".replace("\n", "\n  "))
        else:
            grid = Table.grid(padding=(0, 1))
            grid.add_row(Text(mark, style), Text(visible(finding.text)))
            console.print(grid)


def write_json(path: Path, shown: list[SplitView], findings: dict[str, list[Finding]]) -> None:
    """Write the report and the findings of each part, by its name."""
    parts = {
        view.name: asdict(view.report) | {"findings": [finding._asdict() for finding in findings[view.name]]}
        for view in shown
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(parts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def draw_histogram(console: Console, view: SplitView, path: Path) -> None:
    """Draw the lengths.

    Raises:
        ValueError: If matplotlib is not installed, or no row is kept.
    """
    if find_spec("matplotlib") is None:
        raise ValueError("`--histogram` draws with matplotlib, which is not installed: `pip install 'smollit[plots]'`")
    from smollit.commands.inspect.histogram import draw  # matplotlib takes a second to load

    draw(view, path)
    say(console, f"lengths drawn: {path}")
