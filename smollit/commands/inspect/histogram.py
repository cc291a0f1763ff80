"""Lengths of a split as a plot: which rows `max_length` truncates, and how many tokens of a row are in the loss."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from smollit.commands.inspect.split_view import SplitView

BINS = 60
# Okabe and Ito's colours, which colour-blind people can distinguish.
BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"


def draw(view: SplitView, path: Path) -> None:
    """Write a PNG: lengths of the kept rows, and below it loss tokens per row, or the parts of pairs.

    Raises:
        ValueError: If no row is kept.
    """
    if not len(view.examples):
        raise ValueError(f"split {view.name} has no usable row: there are no lengths to draw")
    figure = Figure(figsize=(9, 7), dpi=110)
    figure.set_layout_engine("constrained", hspace=0.08)
    above, below = figure.subplots(2, 1)
    figure.suptitle(f"{view.name}: {view.report.kept:,} rows", fontsize=14, fontweight="bold")
    draw_lengths(above, view)
    if view.has_chats:
        draw_loss_tokens(below, view.column("loss_tokens"))
    else:
        draw_parts(below, {name: _sizes(view, f"{name}_ids") for name in ("prompt", "chosen", "rejected")})
    for axes in (above, below):
        _tidy(axes)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")


def draw_lengths(axes: Axes, view: SplitView) -> None:
    """Lengths before truncation, in two colours where `max_length` divides them."""
    lengths, limit = view.column("full_length"), view.encoder.options.max_length
    shown, edges = _binned(lengths, limit)
    whole, truncated = shown[lengths <= limit], shown[lengths > limit]
    axes.hist(whole, edges, color=BLUE, label=f"not truncated ({len(whole):,} rows)")
    if len(truncated):
        label = f"truncated ({len(truncated):,} rows)"
        axes.hist(truncated, edges, color=ORANGE, hatch="///", edgecolor="white", label=label)
    if limit <= edges[-1]:
        axes.axvline(limit, color="black", linestyle="--", linewidth=1.2, label=f"max_length {limit:,}")
    what = "whole chat" if view.has_chats else "prompt and the longer response"
    fits = "" if limit <= edges[-1] else f"; max_length {limit:,} is far above all"
    axes.set_title(f"Length before truncation ({what}){fits}")
    axes.set_xlabel(_tokens("tokens per row", lengths, edges))
    axes.legend(frameon=False)


def draw_loss_tokens(axes: Axes, counts: NDArray[Any]) -> None:
    """Loss tokens per row."""
    shown, edges = _binned(counts, 0)
    axes.hist(shown, edges, color=GREEN)
    axes.axvline(np.median(counts), color="black", linestyle=":", label=f"median {np.median(counts):,.0f}")
    axes.set_title("Loss tokens")
    axes.set_xlabel(_tokens("loss tokens per row", counts, edges))
    axes.legend(frameon=False)


def draw_parts(axes: Axes, parts: dict[str, NDArray[Any]]) -> None:
    """Lengths of the parts of pairs, as outlines over each other."""
    everything = np.concatenate(list(parts.values()))
    _, edges = _binned(everything, 0)
    looks = zip(parts.items(), (BLUE, GREEN, VERMILION), (":", "-", "--"), strict=True)
    for (name, lengths), colour, line in looks:
        label = f"{name} (mean {lengths.mean():,.0f})"
        shown = np.minimum(lengths, edges[-1])
        axes.hist(shown, edges, histtype="step", color=colour, linestyle=line, linewidth=2, label=label)
    axes.set_title("Prompt, chosen and rejected, after truncation")
    axes.set_xlabel(_tokens("tokens", everything, edges))
    axes.legend(frameon=False)


def _binned(lengths: NDArray[Any], limit: int) -> tuple[NDArray[Any], list[int]]:
    """The lengths, those of the far tail put into the last bin, and whole-number edges of the bins."""
    far = int(np.percentile(lengths, 99.5)) + 1
    last = max(far, int(1.05 * limit)) if limit < 2 * far else far
    last = min(last, max(int(lengths.max()), limit if limit < 2 * far else 0) + 1)
    step = max(1, -(-last // BINS))
    edges = list(range(0, last + step + 1, step))
    return np.minimum(lengths, edges[-1]), edges


def _sizes(view: SplitView, name: str) -> NDArray[Any]:
    return pc.list_value_length(view.examples.select_columns(name).with_format("arrow")[:][name]).to_numpy()


def _tokens(label: str, lengths: NDArray[Any], edges: list[int]) -> str:
    beyond = int((lengths > edges[-1]).sum())
    return f"{label} (longer ones, up to {lengths.max():,}, are in the last bar: {beyond:,})" if beyond else label


def _tidy(axes: Axes) -> None:
    axes.set_ylabel("rows")
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.set_axisbelow(True)
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.margins(x=0.01)
    axes.set_xlim(left=0)
