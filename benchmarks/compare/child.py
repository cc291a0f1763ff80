"""A measurement in a separate process: forked from one that has the libraries, or started anew."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver, get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

MARK = "RESULT "  # the line that counts
BENCHMARKS = Path(__file__).resolve().parent.parent
Job = dict[str, Any]
Measure = Callable[[Job], Job]


def fork(measure: Measure, job: Job) -> Job:
    """measure(job) in a process of its own, without the seconds that importing the libraries takes.

    It is forked from a process that has imported the module of `measure` and done nothing else, offline.

    Raises:
        RuntimeError: If it fails, with its error, or its last lines if it was killed.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload([measure.__module__])  # counts once, at the first call
    with patch.dict(os.environ, offline()):  # it has its environment from its start
        forkserver.ensure_running()
    with tempfile.NamedTemporaryFile("r", errors="replace") as log:
        try:
            with ProcessPoolExecutor(1, context) as one:
                return one.submit(_logged, measure, job, log.name).result()
        except BrokenProcessPool as error:
            raise RuntimeError("killed (out of memory?): " + " | ".join(log.read().splitlines()[-3:])) from error
        except Exception as error:
            raise RuntimeError(f"{type(error).__name__}: {error}") from error


def _logged(measure: Measure, job: Job, log: str) -> Job:
    """What it prints goes into a file, not among the results of the process that started it."""
    file = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    return measure(job)


def start(module: str, job: Job) -> Job:
    """Run `python -m MODULE JOB`, offline, and read its reply.

    Raises:
        RuntimeError: If it fails, with its last lines.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, json.dumps(job)],
        capture_output=True,
        text=True,
        env=os.environ | offline(),
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode or not lines:
        killed = " (killed: out of memory?)" if done.returncode == -9 else ""
        raise RuntimeError(f"exit code {done.returncode}{killed}: " + " | ".join(done.stderr.strip().splitlines()[-3:]))
    return json.loads(lines[-1].removeprefix(MARK))


def offline() -> dict[str, str]:
    """What a child's environment has besides ours: our modules and smollit, no network, no bars."""
    # This checkout's smollit, whatever folder the script was started from.
    paths = (str(BENCHMARKS), str(BENCHMARKS.parent), os.environ.get("PYTHONPATH"))
    return {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TQDM_DISABLE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def job_of_this_process() -> Job:
    """The job on the command line."""
    return json.loads(sys.argv[1])


def reply(result: Job) -> None:
    """Print the line that counts."""
    print(MARK + json.dumps(result), flush=True)
