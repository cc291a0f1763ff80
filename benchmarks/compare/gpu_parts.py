"""The parts of gpu.sh, the most important first, each in processes of its own and with a time limit.

    bash benchmarks/gpu.sh --out FOLDER --wheels FOLDER --data FOLDER --tokenizer FOLDER
    bash benchmarks/gpu.sh --out FOLDER --dry --parts speed-135M compile

Writes report.json, report.md and logs.tar.gz after every part, so that a call that is cut off keeps what it has. The
exit code is the number of parts that failed.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from compare.gpu_report import markdown

BENCHMARKS = Path(__file__).resolve().parent.parent
MARK = "RESULT "
SECONDS = 470  # of the whole call
WHEELS_SECONDS = 20  # of them, for unpacking wheels: the limits of all parts fit into the rest
TASKS = ("sft", "dpo")
# Rows of a micro-batch as in configs/ and their overlays; one micro-batch makes a step here.
ROWS = {"135M": {"sft": 32, "dpo": 8}, "360M": {"sft": 8, "dpo": 8}, "1.7B": {"sft": 2, "dpo": 2}}
Job = dict[str, Any]


class Part(NamedTuple):
    """One part of the report.

    Args:
        seconds: Its limit, with the time in which its model is made.
        command: What Python runs.
        model: Size of the model that it needs.
    """

    seconds: int
    command: list[str]
    model: str | None = None


def steps(name: str, *jobs: Job) -> list[str]:
    """Steps of a model with these settings, one after the other in one process."""
    return ["-m", "compare.gpu_step", json.dumps([{"model": f"{{{name}}}"} | job for job in jobs])]


def job(size: str, task: str, **settings: Any) -> Job:
    """A measurement at the shipped settings, but for these."""
    return {"task": task, "rows": ROWS[size][task], "label": f"{task} {size}"} | settings


def attention_jobs() -> list[Job]:
    """Chats and pairs with each backend; `documents` with cuDNN's attention too."""
    backends = ("varlen", "documents", "sdpa", "flex_attention")
    found = [job("135M", task, attention=one, label=f"{task} {one}") for one in backends for task in TASKS]
    return [*found, *(job("135M", task, attention="sdpa", cudnn=True, label=f"{task} sdpa, cuDNN") for task in TASKS)]


def parts(common: list[str], *, dry: bool = False) -> dict[str, Part]:
    """All parts, the most important first.

    Args:
        common: Words for the scripts that read data.
        dry: Whether they run on a CPU, where bf16 may take many times as long.
    """

    def compared(task: str) -> list[str]:
        return ["compare_trl.py", "--task", task, "--model", "{135M}", "--json", "--steps", "10", *common]

    def speed(size: str) -> list[str]:
        return steps(size, *(job(size, task) for task in TASKS))

    precision = "32-true" if dry else "bf16-mixed"
    estimated = ["estimate_check.py", "--task", "sft", "--model", "{135M}", "--settings", "shipped", *common]
    return {
        "tests": Part(
            60, ["-m", "pytest", "-p", "no:cacheprovider", "-m", "gpu", str(BENCHMARKS.parent / "tests/gpu")]
        ),
        "speed-135M": Part(45, speed("135M"), "135M"),
        "attention": Part(60, steps("135M", *attention_jobs()), "135M"),
        "trl-sft": Part(55, compared("sft"), "135M"),
        "trl-dpo": Part(55, compared("dpo"), "135M"),
        "speed-360M": Part(30, speed("360M"), "360M"),
        "speed-1.7B": Part(40, speed("1.7B"), "1.7B"),
        "compile": Part(40, steps("135M", *(job("135M", task, compile=True) for task in TASKS)), "135M"),
        "host-memory": Part(25, steps("135M", job("135M", "sft", steps=200, rows=2)), "135M"),
        "estimate": Part(20, estimated, "135M"),
        "switches": Part(20, ["switches.py", "--model", "{135M}", "--precision", precision, *common], "135M"),
    }


class Runner:
    """Runs parts, and keeps what they say.

    Args:
        options: The command line.
        work: A folder that goes with this call.
    """

    def __init__(self, options: argparse.Namespace, work: Path) -> None:
        self.options, self.work = options, work
        self.begun = time.monotonic()
        self.found: dict[str, Any] = {}
        self.models: dict[str, str] = dict(options.model or ())
        site = [str(work / "site"), str(BENCHMARKS.parent), str(BENCHMARKS), os.environ.get("PYTHONPATH", "")]
        self.environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, site)),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "SMOLLIT_CACHE": str(work / "cache"),
            "HF_DATASETS_CACHE": str(work / "datasets"),
            "SMOLLIT_GPU_DRY": "1" if options.dry else "",
            "SMOLLIT_GPU_DATA": str(options.data or ""),
        }

    def left(self) -> float:
        """Seconds of the whole call that are left."""
        return self.options.seconds - (time.monotonic() - self.begun)

    def run(self, name: str, command: Sequence[str], limit: float) -> bool:
        """Run Python, and keep its results, its last lines, and in the tar all that it said.

        A job of it that has failed is a failure, whatever its exit code.
        """
        start, log = time.monotonic(), self.work / "logs" / f"{name}.log"
        print(f"== {name}, at most {limit:.0f} s", flush=True)
        with log.open("w+") as file:
            process = subprocess.Popen(
                [self.options.python, *command],
                cwd=BENCHMARKS,
                env=self.environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code = process.wait(timeout=max(limit, 1))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)  # its own children too
                process.wait()
                code = 124
        lines = log.read_text(errors="replace").splitlines()
        results = [json.loads(line.removeprefix(MARK)) for line in lines if line.startswith((MARK, '{"'))]
        code = code or int(any(result.get("failed") for result in results))
        took = round(time.monotonic() - start, 1)
        self.found[name] = {"code": code, "seconds": took, "results": results, "last_lines": lines[-40:]}
        print(f"== {name}: exit code {code}, {took} s, {len(results)} results", flush=True)
        self.write()
        return code == 0

    def model_of(self, size: str) -> str:
        """The folder of a model of this size: the given one, or one with random weights; tiny in a dry run."""
        if size not in self.models:
            folder, words = str(self.work / size), []
            if self.options.tokenizer:
                words = ["--tokenizer", str(self.options.tokenizer)]
            tiny = f"from pathlib import Path; from compare.tiny import make_tiny; make_tiny(Path({folder!r}))"
            command = ["-c", tiny] if self.options.dry else ["-m", "compare.random_model", size, folder, *words]
            self.run(f"make-{size}", command, min(60, self.left()))
            self.models[size] = folder
        return self.models[size]

    def write(self) -> None:
        """The three files."""
        out: Path = self.options.out
        (out / "report.json").write_text(json.dumps(self.found, indent=1) + "\n")
        (out / "report.md").write_text("\n".join(markdown(self.found)) + "\n")
        with tarfile.open(out / "logs.tar.gz", "w:gz") as tar:
            tar.add(self.work / "logs", arcname="logs")


def parse(args: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", type=Path, default=os.environ.get("OUT"), help="folder of the report; $OUT if left out")
    add("--python", default=sys.executable, help="one with torch, lightning and transformers")
    add("--wheels", type=Path, help="folder of .whl files, unpacked for this call without their dependencies")
    add("--data", type=Path, help="holds ultrachat_200k/ and ultrafeedback_binarized/; sample rows if left out")
    add("--tokenizer", help="for models with random weights; the package's tiny one if left out")
    add("--model", nargs=2, action="append", metavar=("SIZE", "FOLDER"), help="real weights of 135M, 360M or 1.7B")
    add("--seconds", type=float, default=SECONDS, help="limit of the whole call")
    add("--parts", nargs="+", metavar="PART", choices=list(parts([])), help="only these")
    add("--dry", action="store_true", help="on a CPU, with a tiny model and few steps")
    return parser.parse_args(args)


def main(args: list[str] | None = None) -> int:
    """Run the parts; return how many failed."""
    options = parse(args)
    if options.out is None:
        print("gpu.sh: give --out FOLDER, or set OUT", file=sys.stderr)
        return 2
    for name in ("out", "data", "tokenizer", "wheels"):
        setattr(options, name, Path(getattr(options, name)).absolute() if getattr(options, name) else None)
    options.out.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp())
    (work / "logs").mkdir()
    try:
        return run_all(options, Runner(options, work))
    finally:
        shutil.rmtree(work, ignore_errors=True)


def run_all(options: argparse.Namespace, runner: Runner) -> int:
    """Run the parts that are wanted, while there is time."""
    common = ["--data", str(options.data)] if options.data else []
    if options.dry:
        common += ["--device", "cpu"]
    if options.wheels:
        wheels = [str(path) for path in sorted(options.wheels.glob("*.whl"))]
        runner.run(
            "wheels",
            ["-m", "pip", "install", "-q", "--no-index", "--no-deps", "--target", str(runner.work / "site"), *wheels],
            min(WHEELS_SECONDS, runner.left()),
        )
    failed = 0
    for name, part in parts(common, dry=options.dry).items():
        if options.parts and name not in options.parts:
            continue
        if runner.left() < 1:
            runner.found[name] = {"code": 124, "seconds": 0, "results": [], "last_lines": ["no time was left"]}
            failed += 1
            continue
        # The limits are a GPU's: a dry run has no limit but that of the whole call.
        ends = time.monotonic() + (runner.left() if options.dry else min(part.seconds, runner.left()))
        model = runner.model_of(part.model) if part.model else ""
        command = [word.replace(f"{{{part.model}}}", model) for word in part.command]
        failed += not runner.run(name, command, ends - time.monotonic())
    runner.write()
    print(f"== the report is in {options.out}: {failed} parts failed")
    return failed


if __name__ == "__main__":
    raise SystemExit(main())
