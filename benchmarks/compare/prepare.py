"""One preparation of a data set, with its time and its memory, for tokenising.py: python -m compare.prepare JOB.

Each tool imports only its own libraries: the other's would count into its memory.
"""

import json
import resource
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from datasets import load_dataset
from transformers import AutoTokenizer

from compare.chatml import TRL_CHATML
from compare.record import Task, peak_bytes, status_bytes
from compare.tiny import make_tiny

MARK = "RESULT "  # the line that counts
Tool = Literal["smollit", "trl"]


class Job(NamedTuple):
    """One measurement, in its own process."""

    tool: Tool
    task: Task
    file: str
    tokenizer: str
    max_length: int
    num_proc: int
    cache: str


class Watch:
    """Peak of the process's own (anonymous) memory while it is open: mapped files are the page cache's, not ours."""

    def __enter__(self) -> "Watch":
        self.peak, self.done = status_bytes("RssAnon"), threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.done.set()
        self.thread.join()
        self.peak = max(self.peak, status_bytes("RssAnon"))

    def _look(self) -> None:
        while not self.done.wait(0.05):
            self.peak = max(self.peak, status_bytes("RssAnon"))


def measure(job: Job) -> dict[str, float]:
    """Seconds and memory of one preparation."""
    prepare: Callable[[Job], float] = prepare_smollit if job.tool == "smollit" else prepare_trl
    with Watch() as watch:
        seconds = prepare(job)
    workers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "seconds": seconds,
        "peak_memory": peak_bytes("cpu"),
        "peak_own_memory": watch.peak,
        "peak_memory_of_a_worker": workers if job.num_proc > 1 else 0,
    }


def prepare_smollit(job: Job) -> float:
    """Raw file -> cached examples, loaded and reported on: seconds."""
    from compare.rows import make_data

    start = time.perf_counter()
    data = make_data(job.task, Path(job.file), job.tokenizer, job.max_length, Path(job.cache), num_proc=job.num_proc)
    data.prepare_data()
    data.setup("fit")
    return time.perf_counter() - start


def prepare_trl(job: Job) -> float:
    """Raw file -> Arrow rows -> prepared examples in datasets' cache: seconds, without those of the trainer."""
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    kind, config = (SFTTrainer, SFTConfig) if job.task == "sft" else (DPOTrainer, DPOConfig)
    seconds = []

    class TimedTrainer(kind):  # type: ignore[misc, valid-type]
        def _prepare_dataset(self, *args: Any, **options: Any) -> Any:
            start = time.perf_counter()
            prepared = super()._prepare_dataset(*args, **options)
            seconds.append(time.perf_counter() - start)
            return prepared

    model = make_tiny(Path(job.cache) / "tiny")
    options: dict[str, Any] = {"assistant_only_loss": True} if job.task == "sft" else {}
    start = time.perf_counter()
    tokenizer = AutoTokenizer.from_pretrained(job.tokenizer)
    tokenizer.chat_template = TRL_CHATML
    rows = load_dataset("json", data_files=job.file, split="train", cache_dir=job.cache)
    seconds.append(time.perf_counter() - start)
    args = config(
        output_dir=str(Path(job.cache) / "trl"),
        max_length=job.max_length,
        dataset_num_proc=job.num_proc if job.num_proc > 1 else None,
        use_cpu=True,
        bf16=False,
        report_to="none",
        **options,
    )
    TimedTrainer(model=str(model), args=args, train_dataset=rows, processing_class=tokenizer)
    return sum(seconds)


if __name__ == "__main__":
    print(MARK + json.dumps(measure(Job(**json.loads(sys.argv[1])))))
