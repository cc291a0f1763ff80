"""How fast, and in how much memory, against TRL: the same rows, model, precision, batch and length, one by one.

    python benchmarks/compare_trl.py --task sft                                   # tiny random model, sample rows
    python benchmarks/compare_trl.py --task dpo --model FOLDER --data FOLDER      # a real model and real rows
    python benchmarks/compare_trl.py --task sft --contenders smollit trl --json | tail -n 1

Needs `pip install -e '.[trl]'`. Each contender runs in a separate process. What the numbers mean, and which settings
each contender has: benchmarks/README.md. Exits with 1 if a contender fails, or the losses of smollit and TRL differ.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import torch
from compare.contender import MARK
from compare.record import Contender, Plan, Precision, Task
from compare.rows import FOLDERS, SAMPLES, SPLITS, Selection, select_rows, write_rows
from compare.table import assemble, table
from compare.tiny import make_tiny
from datasets import disable_progress_bars
from transformers.utils.logging import disable_progress_bar

import smollit

PACKAGE = Path(smollit.__file__).parent
LEARNING_RATES: dict[Task, float] = {"sft": 2e-5, "dpo": 1e-6}  # TRL's defaults
DEFAULT: tuple[Contender, ...] = ("smollit", "trl", "trl-tuned", "floor")


def start_contender(contender: str, plan: Path, profiled: bool = False) -> dict[str, Any] | str:
    """In a separate process: its result, or why there is none."""
    command = [sys.executable, "-m", "compare.contender", contender, str(plan)] + ["--profile"] * profiled
    # The same for all: no network, caches that go with the run's folder, the same allocator.
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH")))),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(plan.parent / contender),
        "TQDM_DISABLE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode or not lines:
        killed = " (killed: out of memory?)" if done.returncode == -9 else ""
        return f"exit code {done.returncode}{killed}: " + " | ".join(done.stderr.strip().splitlines()[-3:])
    return json.loads(lines[-1].removeprefix(MARK))


def make_plan(options: argparse.Namespace, folder: Path) -> tuple[Plan, Selection]:
    """Choose rows and settings, and write the rows down."""
    task: Task = options.task
    device = ("cuda" if torch.cuda.is_available() else "cpu") if options.device == "auto" else options.device
    on_gpu = device == "cuda"
    steps = options.steps or (20 if on_gpu else 3)
    warmup = options.warmup or (5 if on_gpu else 1)
    dataset = options.data / FOLDERS[task] if options.data else PACKAGE / "data" / "samples" / SAMPLES[task]
    model = options.model or str(make_tiny(folder / "tiny"))
    num_rows = (steps + warmup) * options.examples_per_step
    found = select_rows(task, dataset, SPLITS[task], model, num_rows, options.max_length, folder)
    plan = Plan(
        task=task,
        model=model,
        rows=str(write_rows(found.rows, folder / "rows.jsonl")),
        sizes=found.sizes,
        max_length=options.max_length,
        examples_per_step=options.examples_per_step,
        steps=steps,
        warmup=warmup,
        precision=options.precision or ("bf16-mixed" if on_gpu else "32-true"),
        device=device,
        seed=options.seed,
        learning_rate=options.learning_rate or LEARNING_RATES[task],
        gradient_checkpointing=options.gradient_checkpointing,
        trl_compile=options.trl_compile,
        floor_size=options.floor_size or (8192 if on_gpu else 2048),
    )
    return plan, found


def describe(plan: Plan, found: Selection) -> dict[str, Any]:
    """Versions, machine, settings and rows."""
    versions = {name: version(name) for name in ("trl", "transformers", "torch", "lightning") if find_spec(name)}
    sizes = plan.measured_sizes()
    return {
        "task": plan.task,
        "versions": {"smollit": smollit.__version__} | versions,
        "device": torch.cuda.get_device_name()
        if plan.device == "cuda"
        else f"{os.cpu_count()} CPUs, {platform.machine()}",
        "threads": torch.get_num_threads(),
        "model": plan.model,
        "precision": plan.precision,
        "max_length": plan.max_length,
        "examples_per_step": plan.examples_per_step,
        "steps": plan.steps,
        "warmup": plan.warmup,
        "gradient_checkpointing": plan.gradient_checkpointing,
        "rows": {
            "measured": len(sizes),
            "real_tokens": sum(size.tokens for size in sizes),
            "loss_tokens": sum(size.loss_tokens for size in sizes),
            "cut": found.num_cut,
            "share_tokenised_alike": found.num_alike / found.num_usable,
        },
    }


def say(about: dict[str, Any]) -> None:
    """The setting, for people."""
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    rows = about["rows"]
    print(f"{about['task']} on {about['device']}, {about['threads']} threads, {about['precision']}; {versions}")
    print(
        f"{about['model']}: {about['warmup']} + {about['steps']} steps of {about['examples_per_step']}, max_length"
        f" {about['max_length']}, gradient checkpointing {'on' if about['gradient_checkpointing'] else 'off'}"
    )
    print(
        f"{rows['real_tokens']} real tokens in the {rows['measured']} measured rows, {rows['loss_tokens']} in the loss;"
        f" {rows['cut']} rows truncated; both tokenize {rows['share_tokenised_alike']:.1%} of the usable rows alike",
        flush=True,
    )


def parse(args: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--task", choices=get_args(Task), default="sft")
    add("--model", help="Hub id or Hugging Face folder; a tiny random model if left out")
    add("--data", type=Path, help="folder with ultrachat_200k/ and ultrafeedback_binarized/; sample rows if left out")
    add("--max_length", type=int, default=1024, help="tokens; both tools truncate on the right")
    add("--examples_per_step", type=int, default=4, help="chats, or pairs, in the one batch of a step")
    add("--steps", type=int, help="measured steps: 3 on a CPU, 20 on a GPU")
    add("--warmup", type=int, help="steps before them, at least 1: 1 on a CPU, 5 on a GPU")
    add("--precision", choices=get_args(Precision), help="32-true on a CPU, bf16-mixed on a GPU")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--contenders", nargs="+", choices=get_args(Contender), default=DEFAULT, help="who runs, in this order")
    add("--seed", type=int, default=0)
    add("--learning_rate", type=float, help="constant; 2e-5 for sft, 1e-6 for dpo")
    add("--gradient_checkpointing", action="store_true", help="for both tools; off by default")
    add("--trl_compile", action="store_true", help="torch.compile in trl-tuned: give it more warm-up")
    add("--floor_size", type=int, help="side of the large product: 2048 on a CPU, 8192 on a GPU")
    add("--profile", action="store_true", help="one more smollit run: the fraction of matrix products in a step")
    add("--json", action="store_true", help="print one JSON object as the last line")
    return parser.parse_args(args)


def main(args: list[str] | None = None) -> int:
    """Run the contenders one after the other, print the table, and report with the exit code whether all is well."""
    options = parse(args)
    if find_spec("trl") is None and any(name.startswith("trl") for name in options.contenders):
        print("TRL is not installed: pip install -e '.[trl]', or leave it out of --contenders", file=sys.stderr)
        return 2
    disable_progress_bars()
    disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        plan, found = make_plan(options, Path(folder))
        about = describe(plan, found)
        say(about)
        file = plan.save(Path(folder) / "plan.json")
        said = {name: start_contender(name, file) for name in dict.fromkeys(options.contenders)}
        profiled = start_contender("smollit", file, profiled=True) if options.profile else {}
    report = assemble(plan, {name: result for name, result in said.items() if isinstance(result, dict)})
    report["failed"] = {name: why for name, why in said.items() if isinstance(why, str)}
    report["profile"] = profiled.get("profile") if isinstance(profiled, dict) else None
    print("\n".join(table(report)))
    if options.json:
        print(json.dumps(about | report))
    return 1 if report["failed"] or (report["losses"] and not report["losses"]["agree"]) else 0


if __name__ == "__main__":
    raise SystemExit(main())
