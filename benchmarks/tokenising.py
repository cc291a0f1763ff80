"""How fast rows become examples on disk, in how much memory, against TRL's preparation of the same rows.

    python benchmarks/tokenising.py                                                # sample rows, tiny tokenizer
    python benchmarks/tokenising.py --data FOLDER --tokenizer FOLDER --num_proc 2 --repeat 3
    python benchmarks/tokenising.py --data FOLDER --tokenizer FOLDER --json | tail -n 1

Needs `pip install -e '.[trl]'`. Every measurement runs in a separate process with an empty cache. What the numbers
mean: benchmarks/README.md.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from compare.prepare import MARK, Job
from compare.record import Task
from compare.rows import FOLDERS, SAMPLES, SPLITS, Row, read_rows
from compare.tiny import TINY
from datasets import disable_progress_bars

import smollit

TIMES = (1, 10)  # how often the rows are repeated
MB = 1e6


def start(job: Job) -> dict[str, float]:
    """Measure in a new process.

    Raises:
        RuntimeError: If it fails.
    """
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH")))),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": job.cache,
        "TQDM_DISABLE": "1",
    }
    command = [sys.executable, "-m", "compare.prepare", json.dumps(job._asdict())]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode or not lines:
        raise RuntimeError(f"{job.tool} failed on {job.task}, exit code {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(lines[-1].removeprefix(MARK))


def repeated(job: Job, repeat: int, folder: Path) -> dict[str, float]:
    """The median of each number over `repeat` measurements, each with an empty cache."""
    found = []
    for _ in range(repeat):
        with tempfile.TemporaryDirectory(dir=folder) as cache:
            found.append(start(job._replace(cache=cache)))
    return {name: statistics.median(each[name] for each in found) for name in found[0]}


def numbered(row: Row, number: int) -> Row:
    """The row with a number after its first message, so that no two rows are the same."""
    return {
        name: [messages[0] | {"content": f"{messages[0]['content']} ({number})"}, *messages[1:]]
        for name, messages in row.items()
    }


def usable(row: Row) -> bool:
    """Texts only, and an assistant turn at the end: neither tool drops or refuses it for its form."""
    return all(
        messages and messages[-1]["role"] == "assistant" and all(message["content"] for message in messages)
        for messages in row.values()
    ) and len({json.dumps(messages) for messages in row.values()}) == len(row)


def write_numbered(rows: list[Row], count: int, path: Path) -> str:
    """`count` rows as JSON Lines, the given ones again and again."""
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            file.write(json.dumps(numbered(rows[number % len(rows)], number)) + "\n")
    return str(path)


def compare_task(task: Task, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All measurements of one task."""
    samples = Path(smollit.__file__).parent / "data" / "samples" / SAMPLES[task]
    dataset = options.data / FOLDERS[task] if options.data else samples
    rows = [row for row in read_rows(task, dataset, SPLITS[task], options.rows, folder / "read") if usable(row)]
    common = {
        "tokenizer": options.tokenizer,
        "max_length": options.max_length,
        "num_proc": options.num_proc,
        "cache": "",
    }
    report: dict[str, Any] = {"rows": len(rows), "smollit": {}, "trl": {}}
    for times in TIMES:
        count = times * len(rows)
        file = write_numbered(rows, count, folder / f"{task}-{times}.jsonl")
        for tool in ("smollit", "trl"):
            found = repeated(Job(tool, task, file, **common), options.repeat, folder)
            report[tool][f"{times}x"] = found | {"rows_per_s": count / found["seconds"]}
    report["ratios"] = ratios(report["smollit"], report["trl"])
    if options.second_start_rows:
        file = write_numbered(rows, options.second_start_rows, folder / f"{task}-second.jsonl")
        job = Job("smollit", task, file, **common | {"cache": str(folder / f"{task}-second")})
        first, second = start(job), start(job)
        report["second_start"] = {
            "rows": options.second_start_rows,
            "first_seconds": first["seconds"],
            "second_seconds": second["seconds"],
        }
    return report


def ratios(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, float]:
    """smollit / TRL at both sizes, and how each one's own memory grows with ten times the rows."""
    found = {f"rows_per_s_{size}": ours[size]["rows_per_s"] / theirs[size]["rows_per_s"] for size in ours}
    found |= {f"peak_memory_{size}": ours[size]["peak_memory"] / theirs[size]["peak_memory"] for size in ours}
    for name, tool in (("smollit", ours), ("trl", theirs)):
        found[f"{name}_own_memory_10x_over_1x"] = tool["10x"]["peak_own_memory"] / tool["1x"]["peak_own_memory"]
    return found


def table(report: dict[str, Any]) -> list[str]:
    """Lines for people."""
    lines = [f"{'':<24} {'rows':>7} {'rows/s':>9} {'s':>8} {'peak MB':>8} {'own MB':>8} {'worker MB':>9}"]
    for task, found in report["tasks"].items():
        for tool in ("smollit", "trl"):
            for size, each in found[tool].items():
                memory = (each[f"peak_{name}"] / MB for name in ("memory", "own_memory", "memory_of_a_worker"))
                name, count = f"{task} {tool} {size}", found["rows"] * int(size[:-1])
                lines.append(
                    f"{name:<24} {count:7d} {each['rows_per_s']:9.1f}"
                    f" {each['seconds']:8.2f} " + " ".join(f"{value:8.1f}" for value in memory)
                )
        lines.append(f"{task} ratios: " + ", ".join(f"{name} {value:.2f}" for name, value in found["ratios"].items()))
        second = found.get("second_start")
        if second:
            lines.append(
                f"{task} second start, {second['rows']} rows: {second['second_seconds']:.2f} s,"
                f" and the first took {second['first_seconds']:.1f} s"
            )
    return lines


def parse(args: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, help="folder with ultrachat_200k/ and ultrafeedback_binarized/; sample rows if left out")
    add("--tokenizer", default=str(TINY), help="hub id or folder; the tiny tokenizer if left out")
    add("--tasks", nargs="+", choices=("sft", "dpo"), default=("sft", "dpo"))
    add("--rows", type=int, default=1_000_000, help="at most so many rows of the data; 10x is ten times that")
    add("--max_length", type=int, default=1024)
    add("--num_proc", type=int, default=1, help="processes that tokenise, in both tools")
    add("--repeat", type=int, default=1, help="measurements, of which the median counts")
    add("--second_start_rows", type=int, default=100_000, help="rows of the second start; 0 leaves it out")
    add("--json", action="store_true", help="print one JSON object as the last line")
    return parser.parse_args(args)


def main(args: list[str] | None = None) -> int:
    """Measure all, and print the table."""
    options = parse(args)
    if find_spec("trl") is None:
        print("TRL is not installed: pip install -e '.[trl]'", file=sys.stderr)
        return 2
    disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        tasks = {task: compare_task(task, options, Path(folder)) for task in options.tasks}
    report = {"num_proc": options.num_proc, "max_length": options.max_length, "repeat": options.repeat, "tasks": tasks}
    print("\n".join(table(report)))
    if options.json:
        print(json.dumps(report))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
