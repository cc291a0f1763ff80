"""LoRA against all weights: SFT on the same rows in the same order, with validation loss, speed and memory.

    python benchmarks/adapters.py                                        # a tiny random model, sample rows: seconds
    python benchmarks/adapters.py --model FOLDER --data FOLDER --precision bf16-mixed --out docs/images/lora.png

All weights train at `--learning-rate`, LoRA at this rate and at ten times of it, the first rate that docs/adapters.md
gives. Each line of the table is a run of `python -m smollit fit`, read from its metrics.csv.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from compare.tiny import make_tiny

from smollit.training.logs.table import Row, read_table

SAMPLES = Path(__file__).resolve().parents[1] / "smollit" / "data" / "samples"
LORA_FACTORS = (1, 10)  # of the rate for all weights


@dataclass(frozen=True)
class Contender:
    """What trains, and how fast it learns."""

    adapter: str | None
    learning_rate: float

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.adapter or 'all weights'}, {self.learning_rate:g}"

    def words(self, rank: int) -> list[str]:
        """Its part of the command line."""
        lora = [f"--model.adapter={self.adapter}", f"--model.adapter.r={rank}"] if self.adapter else []
        return [f"--model.learning_rate={self.learning_rate}", *lora]


@dataclass(frozen=True)
class Found:
    """What a run found.

    Args:
        name: Its contender.
        val_loss: Validation loss by step.
        tokens_per_second: Median over the steps, without the first, which warms up.
        peak_gib: Peak memory of the process.
    """

    name: str
    val_loss: dict[int, float]
    tokens_per_second: float
    peak_gib: float


def train(contender: Contender, options: argparse.Namespace, folder: Path) -> Found:
    """Run `fit` and read its table.

    Raises:
        RuntimeError: If the run fails, with the end of what it said.
    """
    run = folder / contender.name.replace(" ", "-")
    data = options.data / "ultrachat_200k" if options.data else SAMPLES / "ultrachat"
    settings = {
        "model": "SFTModule",
        "model.model_name": options.model,
        "model.schedule": "constant",
        "model.num_warmup_steps": 2,
        "data": "UltraChatDataModule",
        "data.dataset": data,
        "data.val_split": f"test_sft[:{options.val_rows}]",
        "data.max_length": options.max_length,
        "data.train_batch_size": options.rows,
        "data.val_batch_size": options.rows,
        "data.longest_first": "false",
        "data.num_workers": 0,
        "data.cache_dir": folder / "cache",
        "trainer.default_root_dir": run,
        "trainer.devices": 1,
        "trainer.precision": options.precision,
        "trainer.max_steps": options.steps,
        "trainer.log_every_n_steps": 1,
        "trainer.val_every_n_steps": max(options.steps // 4, 1),
        "trainer.num_sanity_val_steps": -1,
        "trainer.callbacks": "callbacks.Throughput",
    }
    words = [f"--{name}={value}" for name, value in settings.items()]
    command = [sys.executable, "-m", "smollit", "fit", *words, *contender.words(options.rank)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{contender.name}: {done.stderr[-2000:]}")
    return found_in(contender.name, read_table(run / "metrics.csv"))


def found_in(name: str, rows: list[Row]) -> Found:
    """The numbers of a run's table."""
    losses = {int(row["step"]): float(row["val/loss"]) for row in rows if row["val/loss"]}
    speeds = [float(row["throughput/tokens_per_second"]) for row in rows if row["throughput/tokens_per_second"]]
    peak = max(float(row["memory/peak_gib"]) for row in rows if row["memory/peak_gib"])
    return Found(name, losses, median(speeds[1:] or speeds), peak)


def table(found: list[Found]) -> str:
    """The rows as a table for a page; the first one is what the others are compared with."""
    steps = sorted(found[0].val_loss)
    lines = [
        "| what trains, rate | " + " | ".join(f"val/loss, step {step}" for step in steps) + " | tokens/s | peak GiB |"
    ]
    lines.append("|---" * (len(steps) + 3) + "|")
    for each in found:
        losses = " | ".join(f"{each.val_loss[step]:.4f}" for step in steps)
        speed, memory = each.tokens_per_second / found[0].tokens_per_second, each.peak_gib / found[0].peak_gib
        numbers = f"{each.tokens_per_second:.0f} ({speed:.2f} x) | {each.peak_gib:.2f} ({memory:.2f} x)"
        lines.append(f"| {each.name} | {losses} | {numbers} |")
    return "\n".join(lines)


def draw(found: list[Found], file: Path) -> None:
    """Validation loss by step, speed, and memory, in one picture."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from compare.style import COLOURS, STYLE

    colours = list(COLOURS.values())
    with plt.rc_context(STYLE):
        figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
        for each, colour in zip(found, colours, strict=False):
            left.plot(list(each.val_loss), list(each.val_loss.values()), marker="o", color=colour, label=each.name)
        left.set_title("validation loss by step")
        left.legend()
        names = [each.name.replace(", ", "\n") for each in found]
        middle.bar(names, [each.tokens_per_second for each in found], color=colours[: len(found)])
        middle.set_title("tokens in a second")
        right.bar(names, [each.peak_gib for each in found], color=colours[: len(found)])
        right.set_title("peak memory, GiB")
        figure.savefig(file)


def main(args: list[str] | None = None) -> int:
    """Run all contenders, print the table, and draw the picture if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="Hugging Face folder; a tiny random model if left out")
    parser.add_argument("--data", type=Path, help="folder with ultrachat_200k/")
    parser.add_argument("--steps", type=int, default=40, help="optimizer steps")
    parser.add_argument("--rows", type=int, default=8, help="chats per step")
    parser.add_argument("--val-rows", type=int, default=40, help="validation chats")
    parser.add_argument("--max-length", type=int, default=256, help="tokens; longer chats are truncated")
    parser.add_argument("--rank", type=int, default=32, help="rank of LoRA")
    parser.add_argument("--learning-rate", type=float, default=2e-5, help="for all weights")
    parser.add_argument("--precision", default="32-true", help="of all runs")
    parser.add_argument("--out", type=Path, help="PNG to draw; needs pip install -e '.[plots]'")
    parser.add_argument("--json", type=Path, help="write the numbers into this file")
    options = parser.parse_args(args)
    contenders = [Contender(None, options.learning_rate)]
    contenders += [Contender("LoRA", factor * options.learning_rate) for factor in LORA_FACTORS]
    with tempfile.TemporaryDirectory() as folder:
        options.model = options.model or make_tiny(Path(folder) / "tiny")
        found = [train(contender, options, Path(folder)) for contender in contenders]
    print(table(found))
    if options.json:
        options.json.write_text(json.dumps([asdict(each) for each in found], indent=2), encoding="utf-8")
    if options.out:
        draw(found, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
