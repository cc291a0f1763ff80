"""What grows with what: time with tokens, memory with the vocabulary and with rows of data; start-up; chunk sizes.

    python benchmarks/growth.py                                        # tiny random model: shows that it runs
    python benchmarks/growth.py --model FOLDER --json growth.json      # a real model, on a quiet machine
    python benchmarks/growth.py --model FOLDER --parts tokens start

On the CPU, in fp32; each measurement in a separate process. What the numbers mean: benchmarks/README.md. Exits with 1
if a part fails.
"""

import argparse
import itertools
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from compare import child, grow
from compare.growth_table import table
from compare.rows import SAMPLES, SPLITS, read_rows
from compare.tiny import make_tiny
from datasets import disable_progress_bars
from transformers import AutoConfig
from transformers.utils.logging import disable_progress_bar

import smollit

Part = Literal["tokens", "vocabulary", "rows", "start", "chunk"]
Found = dict[str, Any]
SAMPLE_ROWS = Path(smollit.__file__).parent / "data" / "samples" / SAMPLES["sft"]
FLOAT = 4  # bytes of an fp32 number
START = ("import", "arguments", "data", "model", "step")  # in their order


# ---- time against tokens


def time_against_tokens(options: argparse.Namespace, folder: Path) -> Found:
    """Seconds of forward and backward at each number of tokens, and the line through them."""
    found = child.fork(grow.time_tokens, {"model": options.model, "tokens": options.tokens})
    seconds = [min(found["seconds"][tokens]) for tokens in options.tokens]
    return {"tokens": options.tokens, "seconds": seconds} | line(options.tokens, seconds)


def line(x: list[int], y: list[float]) -> Found:
    """The least-squares line y = start + slope * x, and the largest |y - line| / line."""
    mean_x, mean_y = statistics.fmean(x), statistics.fmean(y)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)
    start = mean_y - slope * mean_x
    fitted = [start + slope * a for a in x]
    deviation = max(abs(b - at) / abs(at) for b, at in zip(y, fitted, strict=True))
    return {"slope": slope, "start": start, "fitted": fitted, "largest_deviation": deviation}


# ---- memory of the head


def memory_against_vocabulary(options: argparse.Namespace, folder: Path) -> Found:
    """Memory of the head's forward and backward for each vocabulary and chunk size."""
    cells = [
        head_memory(options.head_tokens, hidden_size(options.model), vocabulary, chunk_size)
        for chunk_size in (256, 1024)
        for vocabulary in options.vocabularies
    ]
    return {"tokens": options.head_tokens, "hidden": hidden_size(options.model), "cells": cells}


def head_memory(tokens: int, hidden: int, vocabulary: int, chunk_size: int, *, head: str = "token_logps") -> Found:
    """One measurement, and what it is made of, in bytes."""
    job = {"head": head, "tokens": tokens, "hidden": hidden, "vocabulary": vocabulary}
    job |= {"chunk_size": chunk_size}
    memory = child.fork(grow.measure_head, job | {"repeats": 0})["memory"]
    expected = expected_head_memory(tokens, hidden, vocabulary, chunk_size)
    sizes = {"vocabulary": vocabulary, "chunk_size": chunk_size, "whole_logits": tokens * vocabulary * FLOAT}
    return sizes | {"memory": memory, "expected": expected, "rest": memory - expected}


def expected_head_memory(tokens: int, hidden: int, vocabulary: int, chunk_size: int) -> int:
    """Bytes at the peak of the backward pass: both gradients, and a chunk's logits with their softmax."""
    chunk = math.ceil(tokens / math.ceil(tokens / chunk_size)) * vocabulary * FLOAT  # pieces are of equal size
    return tokens * hidden * FLOAT + vocabulary * hidden * FLOAT + 2 * chunk


def chunk_sizes(options: argparse.Namespace, folder: Path) -> Found:
    """Seconds and memory of heads at each chunk size, for the model's own vocabulary; 0 is all tokens at once."""
    tokens, cells = options.head_tokens, []
    config = AutoConfig.from_pretrained(options.model)
    hidden, vocabulary = config.hidden_size, config.vocab_size
    sizes = [size for size in options.chunk_sizes if size < tokens] + [0]
    for head, chunk_size in itertools.product(options.heads, sizes):
        memory = head_memory(tokens, hidden, vocabulary, chunk_size or tokens, head=head)["memory"]
        job = {"head": head, "tokens": tokens, "hidden": hidden, "vocabulary": vocabulary}
        found = child.fork(grow.measure_head, job | {"chunk_size": chunk_size, "repeats": 2})
        cells.append({"head": head, "chunk_size": chunk_size, "seconds": min(found["seconds"]), "memory": memory})
    return {"tokens": tokens, "vocabulary": vocabulary, "cells": cells}


def hidden_size(model: str) -> int:
    """Of the model's configuration."""
    return AutoConfig.from_pretrained(model).hidden_size


# ---- memory against rows


def memory_against_rows(options: argparse.Namespace, folder: Path) -> Found:
    """Peak memory of preparing, loading and ordering the sample rows, repeated to `--rows` and ten times that."""
    cells = []
    for count in (options.rows, 10 * options.rows):
        file = write_rows(count, folder / f"{count}.jsonl")
        job = {"file": str(file), "tokenizer": options.model, "cache": str(folder / str(count))}
        cells.append(child.fork(grow.measure_rows, job))
    return {"cells": cells}


def write_rows(count: int, path: Path) -> Path:
    """`count` chats: the sample rows again and again, each with a number, so that no two are the same."""
    rows = read_rows("sft", SAMPLE_ROWS, SPLITS["sft"], count, path.parent / "read")
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            first, *others = rows[number % len(rows)]["messages"]
            messages = [first | {"content": f"{first['content']} ({number})"}, *others]
            file.write(json.dumps({"messages": messages}) + "\n")
    return path


# ---- start-up


def start_up(options: argparse.Namespace, folder: Path) -> Found:
    """Seconds of `--help`, and from the start of `fit` to the end of its first step, with the data in the cache."""
    command = [sys.executable, "-m", "smollit", "--help"]
    job = {"arguments": fit_arguments(options.model, folder)}
    first_step(job)  # fills the cache
    runs = [first_step(job) for _ in range(2)]
    return {
        "help_seconds": min(seconds_of(command) for _ in range(3)),
        "first_step_seconds": min(runs, key=lambda parts: sum(parts.values())),
    }


def seconds_of(command: list[str]) -> float:
    """Wall time of a command."""
    start = time.perf_counter()
    subprocess.run(command, env=os.environ | child.offline(), stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def first_step(job: Found) -> dict[str, float]:
    """Seconds of each part of a run's start."""
    start = time.time()
    ends = child.start("compare.first_step", job)
    return parts_between([start, *(ends[part] for part in START)])


def parts_between(times: list[float]) -> dict[str, float]:
    """When it began and when each part of `START` was done -> seconds of each part."""
    return {part: end - begin for part, begin, end in zip(START, times, times[1:], strict=False)}


def fit_arguments(model: str, folder: Path) -> list[str]:
    """A run of one step on one sample chat."""
    return [
        "fit",
        "--model=smollit.modules.SFTModule",
        f"--model.model_name={model}",
        "--data=smollit.data.UltraChatDataModule",
        f"--data.dataset={SAMPLE_ROWS}",
        "--data.val_split=null",
        "--data.max_length=512",
        "--data.train_batch_size=1",
        f"--data.cache_dir={folder / 'cache'}",
        f"--trainer.default_root_dir={folder / 'run'}",
        "--trainer.accelerator=cpu",
        "--trainer.max_steps=1",
        "--trainer.enable_checkpointing=false",
    ]


# ---- all of it

PARTS: dict[Part, tuple[str, Callable[[argparse.Namespace, Path], Found]]] = {
    "tokens": ("time against tokens", time_against_tokens),
    "vocabulary": ("memory of the head against the vocabulary", memory_against_vocabulary),
    "rows": ("memory against rows of data", memory_against_rows),
    "start": ("start-up", start_up),
    "chunk": ("chunk sizes of the head", chunk_sizes),
}


def measure(options: argparse.Namespace, folder: Path) -> Found:
    """Every part that is asked for; one that fails does not stop the others."""
    found: Found = {"failed": {}}
    for part in options.parts:
        title, run = PARTS[part]
        print(f"{title} ...", file=sys.stderr, flush=True)
        start = time.perf_counter()
        try:
            found[part] = run(options, folder)
        except RuntimeError as error:
            found["failed"][part] = str(error)
        print(f"  {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    return found


def parse(args: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", help="Hugging Face folder; a tiny random model if left out")
    add("--parts", nargs="+", choices=get_args(Part), default=get_args(Part), help="what is measured, in this order")
    add("--tokens", nargs="+", type=int, default=[256, 512, 1024, 2048, 4096], help="tokens of a micro-batch")
    add("--vocabularies", nargs="+", type=int, default=[8192, 16384, 32768, 65536])
    add("--chunk_sizes", nargs="+", type=int, default=[128, 256, 512, 1024, 2048], help="and all tokens at once")
    add("--heads", nargs="+", choices=("token_logps", "summed_logps", "torch"), default=("token_logps",))
    add("--head_tokens", type=int, default=2560, help="loss tokens that the head scores")
    add("--rows", type=int, default=1000, help="rows of data; ten times as many are measured too")
    add("--json", type=Path, help="file to write all numbers to")
    return parser.parse_args(args)


def main(args: list[str] | None = None) -> int:
    """Measure, print the tables, and write the numbers down."""
    options = parse(args)
    disable_progress_bars()
    disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        options.model = options.model or str(make_tiny(Path(folder) / "tiny"))
        found = measure(options, Path(folder))
    machine = f"{os.cpu_count()} CPUs, {platform.machine()}"
    about = {"growth": True, "model": options.model, "device": machine, "threads": torch.get_num_threads()}
    print(f"{options.model} on {machine}, {about['threads']} threads, fp32")
    print("\n".join(table(found)))
    if options.json:
        options.json.write_text(json.dumps(about | found, indent=1) + "\n", encoding="utf-8")
    return 1 if found["failed"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
