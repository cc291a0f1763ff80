"""`estimate` against a real run of the same settings: the estimated and the measured peak of memory.

    python benchmarks/estimate_check.py --model FOLDER --data FOLDER --task sft
    python benchmarks/estimate_check.py --model FOLDER --data FOLDER --task dpo --max_length 256

Each runs in a separate process, one after the other. Without `--model` and `--data` a tiny model and the sample rows
show that it runs: a process is then nearly all libraries.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from compare.tiny import make_tiny

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "smollit" / "data" / "samples"
LIMIT = 0.15  # largest difference of the estimate from the measured peak, relative
# Those of configs/sft.yaml and configs/dpo.yaml, and an adapter in addition.
SHIPPED = ["--model.gradient_checkpointing", "true", "--model.optimizer", "AdamW", "--model.optimizer.fused", "true"]
ADAPTER = [*SHIPPED, "--model.adapter", "LoRA"]
SETTINGS: dict[str, dict[str, list[str]]] = {
    "sft": {
        "plain": [],
        "shipped": SHIPPED,
        "adapter": ADAPTER,
        "checkpointing": ["--model.gradient_checkpointing", "true"],
        "packing": ["--data.packing", "on"],
    },
    "dpo": {
        "frozen": [],
        "shipped": SHIPPED,
        "adapter": ADAPTER,
        "precomputed": ["--model.reference", "precomputed"],
        "checkpointing": ["--model.gradient_checkpointing", "true"],
        "packing": ["--data.packing", "on"],
    },
}
DATA = {"sft": ("ultrachat_200k", "ultrachat"), "dpo": ("ultrafeedback_binarized", "ultrafeedback")}
# A child that trains and then prints its peak of memory.
FIT = """
import sys
from smollit.main import main
from smollit.training.memory import peak_bytes
cli = main(sys.argv[1:])
print("PEAK", peak_bytes(cli.trainer.strategy.root_device))
"""
ESTIMATE = "import sys; from smollit.main import main; main(sys.argv[1:])"


class Result(NamedTuple):
    """Bytes at the highest point of one run."""

    name: str
    estimated: int
    measured: int

    @property
    def ratio(self) -> float:
        """Estimated / measured."""
        return self.estimated / self.measured


def config(arguments: argparse.Namespace, folder: Path, model: Path) -> dict[str, Any]:
    """A run of a few optimizer steps."""
    kind = arguments.task
    module, data = {"sft": ("SFTModule", "UltraChat"), "dpo": ("DPOModule", "UltraFeedback")}[kind]
    real, sample = DATA[kind]
    split = {"sft": "train_sft", "dpo": "train_prefs"}[kind]
    return {
        "model": {"class_path": f"smollit.modules.{module}", "init_args": {"model_name": str(model)}},
        "data": {
            "class_path": f"smollit.data.{data}DataModule",
            "init_args": {
                "dataset": str(arguments.data / real if arguments.data else SAMPLES / sample),
                "train_split": f"{split}[:{arguments.rows}]",
                "val_split": None,
                "chat_template": "chatml",
                "max_length": arguments.max_length,
                "max_dropped_share": 1.0,
                "train_batch_size": arguments.batch_size,
                "cache_dir": str(folder / "cache"),
            },
        },
        "trainer": {
            "accelerator": arguments.device,
            "devices": 1,
            "max_steps": arguments.steps,
            "default_root_dir": str(folder / "run"),
            "logger": False,
            "enable_progress_bar": False,
            "enable_checkpointing": False,
        },
    }


def child(script: str, *words: str) -> str:
    """What a Python process of its own prints.

    Raises:
        SystemExit: If it fails.
    """
    done = subprocess.run([sys.executable, "-c", script, *words], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} failed:\n{done.stderr[-3000:]}")
    return done.stdout


def check(name: str, changes: list[str], path: Path, folder: Path) -> Result:
    """Estimate, then train, with the same settings."""
    written = folder / "estimate.json"
    common = ["--config", str(path), *changes]
    child(ESTIMATE, "estimate", *common, "--json", str(written))
    output = child(FIT, "fit", *common)
    measured = next(int(line.split()[1]) for line in output.splitlines() if line.startswith("PEAK "))
    return Result(name, json.loads(written.read_text())["peak"], measured)


def table(results: list[Result]) -> str:
    """One line per run."""
    lines = ["| settings | estimated GiB | measured GiB | ratio |", "|---|---:|---:|---:|"]
    gib = 1024**3
    lines += [f"| {r.name} | {r.estimated / gib:.2f} | {r.measured / gib:.2f} | {r.ratio:.2f} |" for r in results]
    return "\n".join(lines)


def parse(words: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="Hugging Face folder; default: a tiny random model")
    parser.add_argument("--data", type=Path, help="folder with ultrachat_200k/ and ultrafeedback_binarized/")
    parser.add_argument("--task", choices=list(SETTINGS), default="sft")
    parser.add_argument("--settings", nargs="+", help="names of the settings to run; default: all of the task")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rows", type=int, default=100, help="rows of the data set that are used")
    parser.add_argument("--max_length", type=int, default=1024)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=3)
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> list[Result]:
    """Run, print, and exit with 1 if an estimate for a real model is too far off."""
    arguments = parse(words)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = arguments.model.resolve() if arguments.model else make_tiny(folder / "tiny")
        path = folder / "config.yaml"
        path.write_text(yaml.safe_dump(config(arguments, folder, model)))
        chosen = arguments.settings or list(SETTINGS[arguments.task])
        results = [check(key, SETTINGS[arguments.task][key], path, folder) for key in chosen]
    print(table(results))
    if arguments.model and any(abs(result.ratio - 1) > LIMIT for result in results):
        raise SystemExit(1)
    return results


if __name__ == "__main__":
    main()
