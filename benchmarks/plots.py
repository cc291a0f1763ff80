"""Pictures of what compare_trl.py and growth.py measured. They need matplotlib: `pip install -e '.[plots]'`.

    python benchmarks/compare_trl.py --task sft --model FOLDER --data FOLDER --json | tail -n 1 > sft.json
    python benchmarks/growth.py --model FOLDER --json growth.json
    python benchmarks/plots.py sft.json growth.json --out docs/images

Each file gives one or two PNGs, named after it: FILE_speed.png and FILE_losses.png, or FILE.png.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from compare.growth_panels import plot_growth
from compare.style import COLOURS, STYLE
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Found = dict[str, Any]
GB = 1e9
NAMES = {
    "smollit": "smollit",
    "smollit-tuned": "smollit tuned",
    "trl": "TRL",
    "trl-tuned": "TRL tuned",
    "floor": "products alone",
}

# ---- against TRL


def plot_speed(found: Found) -> Figure:
    """Bars: real tokens in a second, with what the matrix products alone would allow, and peak memory."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.2), layout="constrained")
    contenders = found["contenders"]
    speeds = {name: each["tokens_per_s"] for name, each in contenders.items()} | floor_speed(contenders)
    bars(left, speeds, "real tokens in a second (more is better)", "{:,.0f}")
    memory = {name: each["peak_memory"] / GB for name, each in contenders.items()}
    bars(right, memory, "peak memory, GB (less is better)", "{:.1f}")
    figure.suptitle(subtitle(found), fontsize=10, color="#444444")
    return figure


def floor_speed(contenders: Found) -> dict[str, float]:
    """Tokens in a second if smollit's step were nothing but its matrix products, at the rate of a large one."""
    ours = contenders.get("smollit")
    return {"floor": ours["tokens_per_s"] / ours["floor"]["share"]} if ours and ours.get("floor") else {}


def bars(axes: Axes, values: dict[str, float], title: str, form: str) -> None:
    """One bar each, with its value."""
    for place, (name, value) in enumerate(values.items()):
        hatch = "//" if name == "floor" else None
        axes.bar(place, value, color=COLOURS[name], width=0.65, hatch=hatch, edgecolor="white")
        axes.annotate(
            form.format(value), (place, value), xytext=(0, 3), textcoords="offset points", ha="center", fontsize=11
        )
    axes.set_xticks(range(len(values)), [NAMES[name] for name in values])
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_title(title, loc="left")
    axes.margins(y=0.15)


def plot_losses(found: Found) -> Figure:
    """The loss of each step, all contenders in one picture."""
    figure, axes = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    # Thick below thin: equal curves stay visible.
    widths = {"trl": 6.0, "trl-tuned": 2.0, "smollit": 2.0, "smollit-tuned": 1.2}
    for name, each in sorted(found["contenders"].items(), key=lambda item: -widths[item[0]]):
        steps = range(1, len(each["losses"]) + 1)
        axes.plot(
            steps,
            each["losses"],
            color=COLOURS[name],
            linewidth=widths[name],
            alpha=0.5 if name == "trl" else 1,
            linestyle=":" if name == "trl-tuned" else "-",
            marker="o",
            markersize=widths[name] + 2,
            label=NAMES[name] + (" (rows in another order)" if name == "trl-tuned" else ""),
        )
    axes.set_xlabel("optimizer step, warm-up included")
    axes.set_ylabel("loss")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend()
    agree = found.get("losses")
    title = f"losses: smollit and TRL at most {agree['largest_difference']:.0e} apart, relative" if agree else "losses"
    axes.set_title(title, loc="left")
    figure.suptitle(subtitle(found), fontsize=10, color="#444444")
    return figure


def subtitle(found: Found) -> str:
    """What was run where."""
    settings = f"{found['examples_per_step']} examples in a step, up to {found['max_length']:,} tokens"
    return f"{found['task'].upper()}, {Path(found['model']).name}, {settings}, {found['precision']}, {found['device']}"


# ---- files


def pictures(found: Found) -> dict[str, Figure]:
    """Figures by the ending of their file's name.

    Raises:
        ValueError: If neither script wrote this.
    """
    if found.get("contenders"):
        return {"_speed": plot_speed(found), "_losses": plot_losses(found)}
    if "growth" in found:
        return {"": plot_growth(found)}
    raise ValueError("holds no results of compare_trl.py --json, nor of growth.py --json")


def main(args: list[str] | None = None) -> int:
    """Read the results, and write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="folder of the pictures")
    options = parser.parse_args(args)
    options.out.mkdir(parents=True, exist_ok=True)
    failed = False
    with plt.rc_context(STYLE):
        for path in options.results:
            try:
                drawn = pictures(json.loads(path.read_text(encoding="utf-8")))
            except ValueError as error:
                print(f"{path}: {error}", file=sys.stderr)
                failed = True
                continue
            for ending, figure in drawn.items():
                file = options.out / f"{path.stem}{ending}.png"
                figure.savefig(file)
                plt.close(figure)
                print(file)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
