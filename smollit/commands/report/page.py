"""A report as Markdown and as one HTML file that needs nothing else."""

import html
import io
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from smollit.commands.report.run import Run, table
from smollit.paths import write_whole

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
li.bad { color: #c0392b; } li.good { color: #1e8449; }
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
            advice = f" → <em>{html.escape(each.advice)}</em>" if each.advice else ""
            body.append(f'<li class="{kind}">{MARK[each.good]} {html.escape(each.text)}{advice}</li>')
        body.append("</ul>")
    body.append('<h2>Curves</h2><div class="plots">' + "\n".join(charts(runs)) + "</div>")
    for run in runs:
        head, rows = table(run)
        body.append(f'<h2>{html.escape(run.name)} by step</h2><div class="wide"><table><tr>')
        body += [f"<th>{html.escape(name)}</th>" for name in head]
        body += ["</tr>", *("<tr>" + "".join(f"<td>{value}</td>" for value in row) + "</tr>" for row in rows)]
        body.append("</table></div>")
    return f"<!doctype html><html><head>{META}<style>{STYLE}</style></head><body>{''.join(body)}</body></html>\n"


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
    """A chart of one or several metrics, of all runs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.0), layout="constrained")
    axes = figure.subplots()
    for run in runs:
        for name in names:
            points = run.curves.points(name)
            if points:
                label = name if len(runs) == 1 else f"{run.name}: {name}"
                axes.plot(
                    list(points),
                    list(points.values()),
                    marker="o" if name.startswith("val/") else "",
                    ms=3,
                    label=label,
                )
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("step", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, frameon=False)
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :]
