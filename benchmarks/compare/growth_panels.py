"""The pictures of growth.py: a panel for each part."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from compare.style import COLOURS

Found = dict[str, Any]
MB = 1e6


def plot_growth(found: Found) -> Figure:
    """A panel for each part that was measured."""
    panels: dict[str, Callable[[Axes, Found], None]] = {
        "tokens": token_panel,
        "vocabulary": vocabulary_panel,
        "rows": row_panel,
        "chunk": chunk_panel,
        "start": start_panel,
    }
    shown = [name for name in panels if name in found]
    columns = min(len(shown), 2)
    height = -(-len(shown) // columns)
    figure, grid = plt.subplots(
        height, columns, figsize=(5.6 * columns, 3.7 * height), layout="constrained", squeeze=False
    )
    for axes in grid.flat[len(shown) :]:
        axes.set_visible(False)
    for axes, name in zip(grid.flat, shown, strict=False):
        panels[name](axes, found[name])
    where = f"{Path(found['model']).name}, {found['device']}, {found['threads']} threads, fp32"
    figure.suptitle(where, fontsize=10, color="#444444")
    return figure


def token_panel(axes: Axes, found: Found) -> None:
    """Points and the line through them."""
    axes.plot(found["tokens"], found["fitted"], color=COLOURS["floor"], label="straight line")
    axes.plot(found["tokens"], found["seconds"], "o", color=COLOURS["smollit"], label="measured")
    axes.set(xlabel="tokens of a micro-batch", ylabel="seconds, forward and backward", xlim=(0, None), ylim=(0, None))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_title(f"time against tokens (off the line: {found['largest_deviation']:.1%} at most)", loc="left")
    axes.legend()


def vocabulary_panel(axes: Axes, found: Found) -> None:
    """Memory, what it must be, and what whole logits would take."""
    sizes = sorted({cell["chunk_size"] for cell in found["cells"]})
    for size, colour in zip(sizes, (COLOURS["smollit"], COLOURS["trl-tuned"]), strict=False):
        cells = [cell for cell in found["cells"] if cell["chunk_size"] == size]
        words = [cell["vocabulary"] for cell in cells]
        axes.plot(words, [cell["memory"] / MB for cell in cells], "o-", color=colour, label=f"chunks of {size:,}")
        rest = [max(cell["rest"], 0) / MB for cell in cells]
        label = f"{size:,}: without gradients, chunk"
        axes.plot(words, rest, "o--", color=colour, markersize=4, linewidth=1, label=label)
    whole = [4 * cell["whole_logits"] / MB for cell in cells]
    axes.plot(words, whole, color=COLOURS["floor"], label="4 x whole logits (not measured)")
    axes.set_xticks(words, [f"{count:,}" for count in words])
    axes.tick_params("x", rotation=20)
    axes.set(xlabel="words of the vocabulary", ylabel="MB, forward and backward", ylim=(0, None))
    axes.set_title(f"memory of the head, {found['tokens']:,} tokens", loc="left")
    axes.legend(fontsize=9)


def row_panel(axes: Axes, found: Found) -> None:
    """Memory at both numbers of rows."""
    names = [f"{cell['rows']:,}" for cell in found["cells"]]
    for shift, key, colour, label in (
        (-0.18, "peak_memory", COLOURS["smollit-tuned"], "with mapped files"),
        (0.18, "peak_own_memory", COLOURS["smollit"], "own"),
    ):
        places = [place + shift for place in range(len(names))]
        drawn = axes.bar(places, [cell[key] / MB for cell in found["cells"]], 0.34, color=colour, label=label)
        axes.bar_label(drawn, fmt="{:,.0f}", padding=2)
    axes.set_xticks(range(len(names)), names)
    axes.set(xlabel="rows of data", ylabel="peak MB of the process")
    axes.margins(y=0.3)
    axes.set_title("memory of preparing and ordering data", loc="left")
    axes.legend(ncols=2, loc="upper center")


def chunk_panel(axes: Axes, found: Found) -> None:
    """Seconds and memory of the first head at each chunk size, on two axes."""
    cells = [cell for cell in found["cells"] if cell["head"] == found["cells"][0]["head"]]
    names = [f"{cell['chunk_size']:,}" if cell["chunk_size"] else "all" for cell in cells]
    other = axes.twinx()
    other.bar(names, [cell["memory"] / MB for cell in cells], 0.5, color="#CCCCCC")
    other.set_ylabel("peak MB (bars)")
    axes.plot(names, [cell["seconds"] for cell in cells], "o-", color=COLOURS["smollit"])
    longest = max(cell["seconds"] for cell in cells)
    axes.set(xlabel="tokens of a chunk", ylabel="seconds (line)", ylim=(0, 1.15 * longest))
    axes.set_zorder(1)
    axes.patch.set_visible(False)  # or else it hides the bars below it
    axes.set_title(f"chunks of the head, {found['tokens']:,} x {found['vocabulary']:,}", loc="left")


def start_panel(axes: Axes, found: Found) -> None:
    """The parts of the way to the first step, one after the other."""
    begin = 0.0
    for part, colour in zip(found["first_step_seconds"], COLOURS.values(), strict=True):
        seconds = found["first_step_seconds"][part]
        axes.barh(0, seconds, left=begin, color=colour, height=0.45, label=f"{part}: {seconds:.1f} s")
        begin += seconds
    axes.set_yticks([])
    axes.set(xlabel="seconds from the start of the process", ylim=(-0.3, 0.7))
    axes.spines["left"].set_visible(False)
    axes.set_title(f"first step after {begin:.1f} s; --help takes {found['help_seconds']:.2f} s", loc="left")
    axes.legend(ncols=3, loc="upper left", fontsize=9)
