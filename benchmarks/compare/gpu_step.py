"""Steps of smollit at given settings, for gpu.sh: python -m compare.gpu_step JOBS, a list as JSON.

Each job prints a line of JSON when it is done, so a process that is stopped keeps what it has measured.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, seed_everything
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from compare.child import reply
from compare.floor import forward_flops, model_size, product_rate
from compare.record import RowSize, peak_bytes, status_bytes
from compare.rows import FOLDERS, SAMPLES, SPLITS, make_data, read_rows, write_rows
from compare.smollit_side import fused_adamw
from smollit.batch import Batch
from smollit.modules import DPOModule, SFTModule
from smollit.training import SmollitTrainer

DRY = bool(os.environ.get("SMOLLIT_GPU_DRY"))
DEVICE = "cpu" if DRY else "cuda"
PACKAGE = Path(sys.modules["smollit"].__file__ or "").parent
MAX_LENGTH = {"sft": 512, "dpo": 512} if DRY else {"sft": 2048, "dpo": 1024}  # as in configs/
WARMUP = 1 if DRY else 3
MOST_ROWS = 1024


class Watch(Callback):
    """Time and work of the steps after the warm-up, and a profile of the last step, which is not timed.

    Args:
        model: Folder of the model.
        steps: Measured steps.
    """

    def __init__(self, model: str, steps: int) -> None:
        self.size, self.steps, self.done = model_size(model), steps, 0
        self.tokens = self.examples = self.flops = 0
        self.host: list[int] = []
        kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (DEVICE == "cuda")
        self.profiler = profile(activities=kinds)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        """Start the clock after the warm-up, and the profiler after the measured steps."""
        if self.done == WARMUP:
            self.start = now()
            self.host.append(status_bytes("VmRSS"))
        if self.done == WARMUP + self.steps:
            self.seconds = now() - self.start
            self.host.append(status_bytes("VmRSS"))
            self.profiler.start()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Count what a measured step did."""
        if WARMUP <= self.done < WARMUP + self.steps:
            self.tokens += batch.num_tokens
            self.examples += batch.num_examples
            self.flops += flops(self.size, batch) * (4 if isinstance(pl_module, DPOModule) else 3)
        elif self.done == WARMUP + self.steps:
            now()
            self.profiler.stop()
        self.done += 1


def flops(size: Any, batch: Batch) -> int:
    """Of a forward pass: real tokens, causal attention, the head on loss tokens."""
    documents = [document for row in batch.layout for document in row]
    rows = [
        RowSize(each.shared, list(each.responses), 0) if each.responses else RowSize(0, [each.shared], 0)
        for each in documents
    ]
    return sum(forward_flops(size, row) for row in rows) + 2 * size.head * batch.num_loss_tokens


def now() -> float:
    """The clock, after all work on a GPU is done."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def measure(job: dict[str, Any], folder: Path, rate: float) -> dict[str, Any]:
    """Train, and return the measurements."""
    seed_everything(0, verbose=False)
    task, steps = job["task"], min(job.get("steps", 5), 2 if DRY else 1000)
    data_folder = os.environ.get("SMOLLIT_GPU_DATA")
    dataset = Path(data_folder) / FOLDERS[task] if data_folder else PACKAGE / "data" / "samples" / SAMPLES[task]
    rows = write_rows(
        read_rows(task, dataset, SPLITS[task], 32 if DRY else MOST_ROWS, folder), folder / f"{task}.jsonl"
    )
    batch = {"packing": "auto", "train_batch_size": min(job["rows"], 4 if DRY else 64)}
    data = make_data(task, rows, job["model"], MAX_LENGTH[task], folder, **batch)
    settings = {name: job[name] for name in ("attention", "compile") if name in job}
    kind = SFTModule if task == "sft" else DPOModule
    module = kind(job["model"], optimizer=fused_adamw, gradient_checkpointing=True, schedule="constant", **settings)
    watch = Watch(job["model"], steps)
    trainer = SmollitTrainer(
        str(folder / "run"),
        callbacks=[watch],
        accelerator="cpu" if DRY else "gpu",
        devices=1,
        precision="bf16-mixed",
        gradient_clip_val=1.0,
        max_steps=WARMUP + steps + 1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
        torch.backends.cuda.enable_cudnn_sdp(bool(job.get("cudnn", False)))
    trainer.fit(module, datamodule=data)
    return {"label": job["label"]} | figures(watch, rate) | kernels(watch)


def figures(watch: Watch, rate: float) -> dict[str, Any]:
    """Speed and memory of the measured steps; MFU is against the rate of a large product on this device."""
    return {
        "s/step": watch.seconds / watch.steps,
        "tokens/s": watch.tokens / watch.seconds,
        "examples/s": watch.examples / watch.seconds,
        "MFU": watch.flops / watch.seconds / rate,
        "large product, TFLOP/s": rate / 1e12,
        "peak GiB": peak_bytes(DEVICE) / 2**30,
        "host memory, MiB per step": (watch.host[1] - watch.host[0]) / 2**20 / watch.steps,
    }


def kernels(watch: Watch) -> dict[str, Any]:
    """Of the profiled step: launches, the part of the time in which the device does nothing, and a table."""
    events = watch.profiler.events() or []
    on_device = [event for event in events if event.device_type == DeviceType.CUDA]
    averages = watch.profiler.key_averages()
    order = "self_cuda_time_total" if DEVICE == "cuda" else "self_cpu_time_total"
    busy = sum(event.time_range.elapsed_us() for event in on_device)
    whole = max((event.time_range.end for event in events), default=0) - min(
        (event.time_range.start for event in events), default=0
    )
    return {
        "launches": sum(event.count for event in averages if event.key.startswith("cudaLaunchKernel")),
        "idle": 1 - busy / whole if on_device else None,
        "profile": averages.table(sort_by=order, row_limit=25, max_name_column_width=60),
    }


if __name__ == "__main__":
    jobs = json.loads(sys.argv[1])
    rate = product_rate(256 if DRY else 8192, DEVICE, torch.bfloat16)
    for job in jobs:
        if DRY and job.get("attention") == "flex_attention":
            continue  # it can't be trained on a CPU
        with tempfile.TemporaryDirectory() as name:
            try:
                reply(measure(job, Path(name), rate))
            except Exception as error:  # the other jobs are measured all the same
                reply({"label": job["label"], "failed": f"{type(error).__name__}: {error}"[:300]})
