"""Exactness first: with every switch, one optimizer step has the loss and gradient norm of the plain path.

    python benchmarks/switches.py                                        # tiny random model, sample rows
    python benchmarks/switches.py --task dpo --model FOLDER --data FOLDER --json switches.json
    python benchmarks/switches.py --only documents packing "chunks of 128"

Each switch runs in a separate process, on the same four rows. Prints differences, seconds and memory; exits with 1 if
a switch fails or differs by more than the tolerance. More: benchmarks/README.md.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from compare.child import fork
from compare.record import Precision, Task
from compare.rows import FOLDERS, SAMPLES, SPLITS, make_data, read_rows, write_rows
from compare.switch import run
from compare.tiny import make_tiny
from datasets import disable_progress_bars
from transformers.utils.logging import disable_progress_bar

import smollit

PACKAGE = Path(smollit.__file__).parent
PLAIN = "plain"
NUM_EXAMPLES = 4
CANDIDATES = 64  # rows that the four are picked from
ALL_TOKENS = 1_000_000  # as a chunk size: never in chunks
TOLERANCE: dict[Precision, float] = {"32-true": 1e-5, "bf16-mixed": 2e-2}  # relative; bf16 has 8 bits
Found = dict[str, Any]


class Switch(NamedTuple):
    """What is set otherwise than in the plain path: init_args of the model, of the data module, of the trainer."""

    model: Found = {}
    data: Found = {}
    trainer: Found = {}


# Padded rows, one mask, one example per row, one micro-batch, all logits at once, one loop over the weights.
PLAIN_SWITCH = Switch(
    {"attention": "sdpa", "chunk_size": ALL_TOKENS}, {"train_batch_size": NUM_EXAMPLES}, {"accumulate_grad_batches": 1}
)


def switches(task: Task, device: str, longest: int) -> dict[str, Switch]:
    """All that are compared; `longest` is the positions of the longest row."""
    # A last window may have fewer micro-batches: the end of the epoch closes it.
    accumulated = {"accumulate_grad_batches": NUM_EXAMPLES}
    found = {
        "documents": Switch({"attention": "documents"}),
        "eager": Switch({"attention": "eager"}),
        "packing": Switch({}, {"packing": "on", "pack_length": 2 * longest}),
        "packing, documents": Switch({"attention": "documents"}, {"packing": "on", "pack_length": 2 * longest}),
        "batch tokens": Switch({}, {"max_batch_tokens": 2 * longest}, accumulated),
        "4 micro-batches": Switch({}, {"train_batch_size": 1}, accumulated),
        "by length": Switch({}, {"train_batch_size": 2, "group_by_length": True}, accumulated),
        "chunks of 128": Switch({"chunk_size": 128}),
        "chunks of 4096": Switch({"chunk_size": 4096}),
        "checkpointing": Switch({"gradient_checkpointing": True}),
        "selective": Switch({"gradient_checkpointing": "selective"}),
        "compile": Switch({"compile": True}),
        "fused": Switch({"fused": True}),
        "together": Switch(
            {"attention": "documents", "chunk_size": 128, "gradient_checkpointing": "selective", "fused": True},
            {"packing": "on", "pack_length": 2 * longest},
        ),
    }
    if device == "cuda":
        found["flex"] = Switch({"attention": "flex_attention"})
        found["packing, flex"] = Switch({"attention": "flex_attention"}, {"packing": "on", "pack_length": 2 * longest})
    if task == "dpo":
        found["offloaded"] = Switch({"reference": "offloaded"})
        found["precomputed"] = Switch({"reference": "precomputed"})
    return found


def make_job(switch: Switch, common: Found) -> Found:
    """The plain settings with those of the switch on top."""
    names = ("model", "data", "trainer")
    settings = {name: plain | own for name, plain, own in zip(names, PLAIN_SWITCH, switch, strict=True)}
    return common | settings


def pick_rows(options: argparse.Namespace, folder: Path) -> tuple[Path, int]:
    """A file with four rows of different lengths, none truncated, from the shortest quarter; the longest's positions.

    Raises:
        ValueError: If there are fewer than four.
    """
    task: Task = options.task
    dataset = options.data / FOLDERS[task] if options.data else PACKAGE / "data" / "samples" / SAMPLES[task]
    rows = read_rows(task, dataset, SPLITS[task], CANDIDATES, folder / "datasets")
    file = write_rows(rows, folder / "candidates.jsonl")
    data = make_data(task, file, options.model, options.max_length, folder / "candidates")
    data.prepare_data()
    data.setup("fit")
    examples, lengths = data.examples["train"], data.examples["train"].lengths
    whole = [
        (length, examples[index]["row"]) for index, length in enumerate(lengths) if not examples[index]["truncated"]
    ]
    if len(whole) < NUM_EXAMPLES:
        raise ValueError(f"{len(whole)} of {len(rows)} rows fit into {options.max_length} tokens: raise `--max_length`")
    picked = spread(sorted(whole))
    # The longest in the middle: then each switch that orders or splits rows has something to do.
    order = [picked[place] for place in (1, 3, 0, 2)]
    return write_rows([rows[row] for _, row in order], folder / "rows.jsonl"), picked[-1][0]


def spread(ranked: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Four of the shortest quarter, evenly spaced; of fewer than 16 rows the shortest four."""
    last = max(len(ranked) // 4, NUM_EXAMPLES) - 1
    return [ranked[last * number // (NUM_EXAMPLES - 1)] for number in range(NUM_EXAMPLES)]


def relative(value: float, plain: float) -> float:
    """|value - plain| / |plain|."""
    return abs(value - plain) / abs(plain)


def weights_difference(path: Path, plain: Path) -> float:
    """|| w - plain || / || plain || over all weights."""
    ours, theirs = (torch.load(file, mmap=True, weights_only=True) for file in (path, plain))
    apart = sum(float((ours[name].double() - theirs[name].double()).square().sum()) for name in theirs)
    return (apart / sum(float(weight.double().square().sum()) for weight in theirs.values())) ** 0.5


def judge(found: Found, plain: Found, tolerance: float) -> Found:
    """A switch's metrics with its differences from the plain path, and whether they are within the tolerance."""
    differences = {f"{name}_difference": relative(found[name], plain[name]) for name in ("loss", "gradient_norm")} | {
        name: found[name] for name in ("weights_difference",) if name in found
    }
    # Not `<=` of the largest: NaN must not agree.
    return found | differences | {"agrees": all(value <= tolerance for value in differences.values())}


def run_all(chosen: dict[str, Switch], common: Found, folder: Path) -> tuple[Found, Found]:
    """Metrics by switch, and why others failed. Weights after the step are compared for `fused` alone.

    Elsewhere AdamW's first step is of the size of the learning rate, whatever the size of the gradient: where that is
    almost 0, the last digit decides on the sign.
    """
    found: Found = {}
    failed: Found = {}
    for name, switch in ({PLAIN: Switch()} | chosen).items():
        print(f"{name} ...", file=sys.stderr, flush=True)
        keep = "fused" in chosen and name in (PLAIN, "fused")
        try:
            weights = folder / f"{name}.pt" if keep else None
            job = make_job(switch, common | {"weights": str(weights) if weights else None, "cache": "cache"})
            found[name] = fork(run, job)
        except RuntimeError as error:
            failed[name] = str(error)
            if name == PLAIN:
                break
    if "fused" in found:
        found["fused"]["weights_difference"] = weights_difference(folder / "fused.pt", folder / f"{PLAIN}.pt")
    return found, failed


def table(report: Found) -> list[str]:
    """Lines for people."""
    lines = [f"{'':<19} {'loss':>9} {'norm':>9} {'d loss':>8} {'d norm':>8} {'micro':>6} {'s/step':>8} {'peak GB':>8}"]
    for name, found in report["switches"].items():
        lines.append(
            f"{name:<19} {found['loss']:9.5f} {found['gradient_norm']:9.4f} {found['loss_difference']:8.1e}"
            f" {found['gradient_norm_difference']:8.1e} {found['micro_batches']:6} {found['seconds']:8.3f}"
            f" {found['peak_memory'] / 1e9:8.2f}{'' if found['agrees'] else '  DIFFERS'}"
        )
        if "weights_difference" in found:
            lines.append(f"{'':<19} weights after the step: {found['weights_difference']:.1e} apart")
    return lines + [f"FAILED: {name}: {why}" for name, why in report["failed"].items()]


def parse(args: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--task", choices=get_args(Task), default="sft")
    add("--model", help="Hub id or Hugging Face folder; a tiny random model if left out")
    add("--data", type=Path, help="folder with ultrachat_200k/ and ultrafeedback_binarized/; sample rows if left out")
    add("--max_length", type=int, default=512, help="tokens; rows that are longer are not picked")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--precision", choices=get_args(Precision), default="32-true")
    add("--tolerance", type=float, help="relative: 1e-5 in fp32, 2e-2 in bf16")
    add("--steps", type=int, help="1 on a CPU, 5 on a GPU: the first is compared, the fastest later one is timed")
    add("--only", nargs="+", metavar="SWITCH", help="names as in the table")
    add("--json", type=Path, help="file to write all metrics to")
    return parser.parse_args(args)


def main(args: list[str] | None = None) -> int:
    """Run the plain path and each switch, and report with the exit code whether all agree."""
    options = parse(args)
    disable_progress_bars()
    disable_progress_bar()
    device = ("cuda" if torch.cuda.is_available() else "cpu") if options.device == "auto" else options.device
    tolerance = options.tolerance or TOLERANCE[options.precision]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options.model = options.model or str(make_tiny(folder / "tiny"))
        rows, longest = pick_rows(options, folder)
        chosen = choose(switches(options.task, device, longest), options.only)
        common = {
            "task": options.task,
            "model_name": options.model,
            "rows": str(rows),
            "max_length": options.max_length,
            "device": device,
            "precision": options.precision,
            "steps": options.steps or (5 if device == "cuda" else 1),
        }
        found, failed = run_all(chosen, common, folder)
    judged = {name: judge(metrics, found[PLAIN], tolerance) for name, metrics in found.items()}
    report = common | {"device_name": device_name(device), "torch": version("torch"), "tolerance": tolerance}
    report |= {"longest": longest, "switches": judged, "failed": failed}
    print(f"{options.task}, {options.model}, {report['device_name']}, {options.precision}, tolerance {tolerance:g}")
    print("\n".join(table(report)))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0 if not failed and all(metrics["agrees"] for metrics in judged.values()) else 1


def choose(found: dict[str, Switch], only: list[str] | None) -> dict[str, Switch]:
    """Those that are named, or all.

    Raises:
        ValueError: If there is no such switch.
    """
    unknown = set(only or ()) - set(found)
    if unknown:
        raise ValueError(f"there is no switch {sorted(unknown)}: there are {list(found)}")
    return {name: switch for name, switch in found.items() if only is None or name in only}


def device_name(device: str) -> str:
    """The GPU's name, or the number of CPUs."""
    return torch.cuda.get_device_name() if device == "cuda" else f"{os.cpu_count()} CPUs, {platform.machine()}"


if __name__ == "__main__":
    raise SystemExit(main())
