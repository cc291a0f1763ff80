"""What stands behind `python -m smollit inspect`: rows as training uses them, what was changed, what looks wrong."""

from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from smollit.commands.inspect.advice import Finding, find_all
from smollit.commands.inspect.rows import BRACKETS, STYLES, is_plain, say, show_row, visible
from smollit.commands.inspect.shown import Shown, show
from smollit.commands.inspect.view import SplitView
from smollit.data.sources.readers import RAW

SOURCE_SHOWN = 600  # characters of a row that can't be rendered
MARKS = {"wrong": ("✗", "bold red"), "note": ("!", "yellow")}


def inspect(
    view: SplitView,
    row: int | None = None,
    num_rows: int = 3,
    find: str | None = None,
    problems: bool = False,
    ids: bool = False,
    histogram: Path | None = None,
    strict: bool = False,
    console: Console | None = None,
) -> int:
    """Show a split; the exit code is 1 if `strict` and something is wrong, else 0.

    Args:
        view: The split.
        row: Show the row of this number, counted from 0, and nothing else.
        num_rows: Number of rows to show.
        find: Show rows whose rendered text holds this.
        problems: Show rows that were dropped, cut, or had control text escaped.
        ids: Show token ids too.
        histogram: Write the lengths as a PNG to this path.
        strict: Make the exit code say whether something is wrong.
        console: Where to print; standard output by default.

    Raises:
        ValueError: If there is no such row.
    """
    console = console or Console()
    if row is not None and not 0 <= row < view.num_rows:
        raise ValueError(f"split {view.name} has rows 0 to {view.num_rows - 1:,}, and no row {row}")
    if row is None:
        say(console, view.report.summary(view.name) + "\n")
    _legend(console)
    shown = [show(view.encoder, view.row(row), row)] if row is not None else choose(view, num_rows, find, problems)
    for one in shown:
        show_row(console, view.name, one, view.encoder.template.tokenizer, row is not None or find is not None, ids)
        if not one.pieces:  # it never became a chat
            source = view.row(one.index)
            say(console, f"    {source.get(RAW, source)!s:.{SOURCE_SHOWN}}\n")
    if row is None:
        say(console, f"{len(shown):,} {'row' if len(shown) == 1 else 'rows'} shown. {_more(view, find, problems)}\n")
    findings: list[Finding] = []
    if row is None or strict:
        findings = find_all(view)
        tell(console, findings)
    if histogram is not None:
        _draw(console, view, histogram)
    return int(strict and any(finding.severity == "wrong" for finding in findings))


def choose(view: SplitView, num_rows: int, find: str | None, problems: bool) -> list[Shown]:
    """The first rows that were asked for: good ones, or those with a problem, or all that hold a text."""
    numbers: Iterable[int] = view.problems() if problems else view.column("row").tolist()
    if find is not None and not problems:
        numbers = range(view.num_rows)
    if not len(view.examples):
        numbers = range(view.num_rows)  # none is good: the dropped ones tell more than nothing
    return list(islice(_holding(view, numbers, find), num_rows))


def tell(console: Console, findings: list[Finding]) -> None:
    """Print the findings, a paragraph each."""
    if not findings:
        say(console, "nothing looks wrong")
    for finding in findings:
        mark, style = MARKS[finding.severity]
        if is_plain(console):
            say(console, f"{mark} {finding.text}".replace("\n", "\n  "))
        else:
            grid = Table.grid(padding=(0, 1))
            grid.add_row(Text(mark, style), Text(visible(finding.text)))
            console.print(grid)


def _holding(view: SplitView, numbers: Iterable[int], find: str | None) -> Iterator[Shown]:
    for number in numbers:
        shown = show(view.encoder, view.row(number), number)
        if find is None or find in "".join(piece.text for piece in shown.pieces):
            yield shown


def _legend(console: Console) -> None:
    """What the colours, or the brackets, mean."""
    words = []
    for state, style in STYLES.items():
        opening, closing = BRACKETS[state] if is_plain(console) else ("", "")
        words.append((f"{opening}{state}{closing}", style))
    say(console, Text("   ").join(Text(word, style=style) for word, style in words) + Text("\n"))


def _more(view: SplitView, find: str | None, problems: bool) -> str:
    count = len(view.problems())
    if problems:
        return f"{count:,} of {view.num_rows:,} were dropped, cut or escaped"
    if find is not None:
        return "--num_rows shows more"
    rest = f"--problems the {count:,} that were" if count else "none was"
    return f"--row N shows one in full, {rest} dropped, cut or escaped"


def _draw(console: Console, view: SplitView, path: Path) -> None:
    if find_spec("matplotlib") is None:
        raise ValueError("`--histogram` draws with matplotlib, which is not installed: `pip install 'smollit[plots]'`")
    from smollit.commands.inspect.histogram import draw  # matplotlib takes a second to load

    draw(view, path)
    say(console, f"lengths drawn: {path}")
