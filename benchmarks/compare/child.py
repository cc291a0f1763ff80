"""A measurement in a separate process: it gets a job as JSON, and prints one marked line of JSON."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

MARK = "RESULT "  # the line that counts
BENCHMARKS = Path(__file__).resolve().parent.parent


def start(module: str, job: dict[str, Any], **environment: str) -> dict[str, Any]:
    """Run `python -m MODULE JOB`, offline, and read its reply.

    Raises:
        RuntimeError: If it fails, with its last lines.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, json.dumps(job)],
        capture_output=True,
        text=True,
        env=os.environ | offline() | environment,
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


def job_of_this_process() -> dict[str, Any]:
    """The job on the command line."""
    return json.loads(sys.argv[1])


def reply(result: dict[str, Any]) -> None:
    """Print the line that counts."""
    print(MARK + json.dumps(result), flush=True)
