"""A report as Markdown and as one HTML file that needs nothing else."""

import html
import io
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from smollit.commands.report.run import Run, table
from smollit.paths import write_whole
from smollit.verdict.curves import Points
from smollit.verdict.preferences import interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

BOUNDED = ("val/rewards/accuracies",)  # fractions of the validation pairs
# Of the metrics of a chart, where colors tell runs apart.
LineStyle = str | tuple[int, tuple[int, ...]]
STYLES: tuple[LineStyle, ...] = ("-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 4)))
WINDOW = 10  # values of a moving mean
MARK = {True: "✓", False: "✗", None: "·"}
PLOTS = {  # title -> metrics of the chart
    "Loss": ("train/loss", "val/loss"),
    "Rewards of the validation pairs": ("val/rewards/chosen", "val/rewards/rejected", "val/rewards/margins"),
    "Accuracy": ("train/rewards/accuracies", "val/rewards/accuracies", "val/token_accuracy"),
    "Accuracy by length": ("val/rewards/accuracies_chosen_longer", "val/rewards/accuracies_chosen_shorter"),
    "Quantiles of the rewards": (
        *(f"val/rewards/{side}_p{percent}" for side in ("chosen", "rejected") for percent in (10, 50, 90)),
    ),
    "Log-probabilities": ("val/logps/chosen", "val/logps/rejected"),
    "Log-ratio to the reference per token": ("val/kl_estimate/chosen", "val/kl_estimate/rejected"),
    "Gradient norm": ("train/gradient_norm",),
    "Learning rate": ("train/learning_rate",),
    "Tokens per second": ("throughput/tokens_per_second",),
}
META = '<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Report</title>'
STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #8884; text-align: right; }
ul { list-style: none; padding-left: .5rem; }
li.bad { color: light-dark(#b03a2e, #ff8a7a); } li.good { color: light-dark(#1e7a42, #6fdc98); }
.plots { display: flex; flex-wrap: wrap; gap: 1rem; } .plots svg { background: #fff; border-radius: 6px; }
.wide { overflow-x: auto; }
"""


def write_report(runs: Sequence[Run], folder: Path) -> None:
    """Write report.html and report.md of these runs."""
    write_whole(folder / "report.html", page(runs))
    write_whole(folder / "report.md", markdown(runs))


def markdown(runs: Sequence[Run]) -> str:
    """The verdicts and tables of all runs."""
    parts = ["# Report\n"]
    for run in runs:
        head, rows = table(run)
        parts.append(f"## {run.name}\n\n`{run.folder}`\n")
        parts += [
            f"- {MARK[each.good]} {each.text}" + (f" → {each.advice}" if each.advice else "") for each in run.findings
        ]
        lines = [head, ["---:"] * len(head), *rows]
        parts.append("\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")
    return "\n".join(parts)


def page(runs: Sequence[Run]) -> str:
    """One HTML file: verdicts, charts of all runs together, tables."""
    body = ["<h1>Report</h1>"]
    for run in runs:
        body.append(f"<h2>{html.escape(run.name)}</h2><p><code>{html.escape(str(run.folder))}</code></p><ul>")
        for each in run.findings:
            kind = {True: "good", False: "bad", None: ""}[each.good]
            advice = f" → <em>{as_html(each.advice)}</em>" if each.advice else ""
            body.append(f'<li class="{kind}">{MARK[each.good]} {as_html(each.text)}{advice}</li>')
        body.append("</ul>")
    body.append('<h2>Curves</h2><div class="plots">' + "\n".join(charts(runs)) + "</div>")
    for run in runs:
        head, rows = table(run)
        body.append(f'<h2>{html.escape(run.name)} by step</h2><div class="wide"><table><tr>')
        body += [f"<th>{html.escape(name)}</th>" for name in head]
        body += ["</tr>", *("<tr>" + "".join(f"<td>{value}</td>" for value in row) + "</tr>" for row in rows)]
        body.append("</table></div>")
    return f"<!doctype html><html><head>{META}<style>{STYLE}</style></head><body>{''.join(body)}</body></html>\n"


def as_html(text: str) -> str:
    """Escaped, with what stands between backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def charts(runs: Sequence[Run]) -> list[str]:
    """One SVG per chart that any run has values for."""
    if find_spec("matplotlib") is None:
        return ["<p>Charts need matplotlib: pip install 'smollit[plots]'</p>"]
    return [
        chart(title, names, runs)
        for title, names in PLOTS.items()
        if any(run.curves.points(n) for run in runs for n in names)
    ]


def chart(title: str, names: Sequence[str], runs: Sequence[Run]) -> str:
    """A chart of one or several metrics, of all runs: long curves with their moving mean, accuracies with intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.0 if len(runs) == 1 else 3.2 + 0.16 * len(names)), layout="constrained")
    axes = figure.subplots()
    for number, run in enumerate(runs):
        for name, style in zip(names, STYLES, strict=False):
            points = run.curves.points(name)
            if points:
                color = None if len(runs) == 1 else f"C{number}"
                draw(axes, points, name, color=color, style=style if color else "-", num_pairs=pairs_of(run, name))
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("step", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    if len(runs) == 1:
        axes.legend(fontsize=7, frameon=False)
    else:
        handles = legend_of_runs([run.name for run in runs], axes.get_lines())
        figure.legend(handles=handles, loc="outside lower center", ncols=2, handlelength=4, fontsize=7, frameon=False)
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :]


def pairs_of(run: Run, name: str) -> int | None:
    """The number of pairs that the values of a metric are fractions of; None of any other metric."""
    return run.curves.num_val if name in BOUNDED else None


def legend_of_runs(runs: Sequence[str], lines: "Sequence[Line2D]") -> "list[Line2D]":
    """A legend of several runs: each run by its color, each metric by its style, of one of its lines."""
    from matplotlib.lines import Line2D

    colors = [Line2D([], [], color=f"C{number}", lw=3, label=run) for number, run in enumerate(runs)]
    named = {label: line for line in lines if not (label := str(line.get_label())).startswith("_")}
    styles = [
        Line2D([], [], color="0.3", ls=line.get_linestyle(), marker=line.get_marker(), ms=3, label=label)
        for label, line in named.items()
    ]
    return [*colors, *styles]


def draw(
    axes: "Axes", points: Points, label: str, *, color: str | None, style: LineStyle, num_pairs: int | None
) -> None:
    """One curve.

    Args:
        axes: Where.
        points: Its values by step.
        label: Its name.
        color: Its color; None takes the next one.
        style: Style of its line.
        num_pairs: Pairs that each value is a fraction of, for 95 % intervals; None draws none.
    """
    steps, values = list(points), list(points.values())
    is_long = len(values) > 4 * WINDOW
    width, marker = (0.8, "") if is_long else (1.5, "o")
    [line] = axes.plot(steps, values, ls=style, color=color, marker=marker, ms=3, lw=width)
    if is_long:  # each step has few rows
        line.set_alpha(0.3)
        means = [sum(values[end - WINDOW : end]) / WINDOW for end in range(WINDOW, len(values) + 1)]
        [line] = axes.plot(steps[WINDOW - 1 :], means, ls=style, color=line.get_color(), lw=1.5)
        label = f"{label}, mean of {WINDOW}"
    line.set_label(label)
    if num_pairs:
        lows, highs = zip(*(interval(value, num_pairs) for value in values), strict=True)
        axes.fill_between(steps, lows, highs, color=line.get_color(), alpha=0.15, lw=0)
