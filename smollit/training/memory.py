"""Memory of a device: free, used, its peak, the CPU allocator's setting; and advice when a run runs out of memory."""

import ctypes
import logging
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy

from smollit.batch import Batch
from smollit.data import ChatDataModule
from smollit.modules import DPOModule, FineTuningModule
from smollit.training.steps import data_module

log = logging.getLogger(__name__)
GIB = 1024**3
CGROUP = Path("/sys/fs/cgroup")
# Parameters of mallopt, from glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
NEVER, NONE = -1, 0
# The CPU's allocator has no dedicated exception.
MESSAGES = ("not enough memory", "DefaultCPUAllocator", "out of memory")
SMALL_CHUNK = 256  # a smaller `model.chunk_size` saves little and is slow


def free_bytes(device: torch.device) -> int | None:
    """Memory that new tensors can use, or None if the system does not report it."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    limits = (_available(Path("/proc/meminfo")), container_free(CGROUP))
    return min((limit for limit in limits if limit is not None), default=None)


def held_bytes(device: torch.device) -> int:
    """Memory in use now: tensors on a GPU; on a CPU the whole process, with its libraries and data."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    status = Path("/proc/self/status")
    return _kibibytes(status, "VmRSS") if status.is_file() else peak_bytes(device)


def peak_bytes(device: torch.device) -> int:
    """The highest memory use so far: of tensors on a GPU; on a CPU of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


def container_free(cgroup: Path) -> int | None:
    """Memory below a container's limit, which /proc/meminfo does not know; None without a limit."""
    limit, used = cgroup / "memory.max", cgroup / "memory.current"
    if not (limit.is_file() and used.is_file()) or limit.read_text().strip() == "max":
        return None
    return max(int(limit.read_text()) - int(used.read_text()), 0)


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory for the rest of the process; return False where there is no glibc.

    By default, glibc maps memory for every large tensor and returns it to the system when it is freed, so the system
    clears the same pages repeatedly: about a tenth of a training step on a CPU, most where batches differ in size. The
    peak memory is the same.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    return mallopt is not None and bool(mallopt(M_MMAP_MAX, NONE) and mallopt(M_TRIM_THRESHOLD, NEVER))


def _available(meminfo: Path) -> int | None:
    """Linux's estimate of the memory available without swapping."""
    return _kibibytes(meminfo, "MemAvailable") if meminfo.is_file() else None


def _kibibytes(file: Path, name: str) -> int:
    """The value of a line such as `VmRSS:  1024 kB`, in bytes."""
    fields = dict(line.split(":", 1) for line in file.read_text().splitlines())
    return int(fields[name].split()[0]) * 1024


class Advice(NamedTuple):
    """One setting to change.

    Args:
        setting: Name on the command line.
        now: Its current value.
        better: A value that needs less memory.
        why: Its effect and its cost.
    """

    setting: str
    now: str
    better: str
    why: str

    def __str__(self) -> str:
        return f"{self.setting}: {self.now} -> {self.better} ({self.why})"


class OutOfMemory(Callback):
    """Adds advice to an out-of-memory error; the error itself is raised unchanged."""

    def __init__(self) -> None:
        self.stage = "training"
        self.batch = ""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.note("training", batch)

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, *_: int) -> None:
        self.note("validation", batch)

    def on_test_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, *_: int) -> None:
        self.note("test", batch)

    def on_predict_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, *_: int) -> None:
        self.note("prediction", batch)

    def note(self, stage: str, batch: Any) -> None:
        """Keep the batch's size as text: a reference to the batch would keep its memory."""
        self.stage, self.batch = stage, describe(batch) if isinstance(batch, Batch) else ""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if is_out_of_memory(exception):
            log.error("%s", self.message(trainer, pl_module))

    def message(self, trainer: Trainer, module: LightningModule) -> str:
        """Where the run ran out of memory, and which settings to change."""
        device = trainer.strategy.root_device
        where = (
            f"in {self.stage}, at a batch of {self.batch}" if self.batch else f"before the first batch of {self.stage}"
        )
        entries = advice(trainer, module, data_module(trainer), training=self.stage == "training")
        return "\n".join(
            [
                f"out of memory on {device} {where}; the peak was {peak_bytes(device) / GIB:.1f} GiB."
                " Settings that need less, in the order to try:",
                *(f"  {number}. {entry}" for number, entry in enumerate(entries, 1)),
                "`python -m smollit estimate` with the same settings shows what a run needs",
            ]
        )


def describe(batch: Batch) -> str:
    """Number of sequences, positions, and the longest sequence."""
    longest = max((sum(document.length for document in row) for row in batch.layout), default=0)
    rows, width = batch.input_ids.shape
    return f"{rows:,} rows x {width:,} positions ({batch.num_tokens:,} tokens, longest row {longest:,})"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means out of memory, on any device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in MESSAGES)


def is_sharded(trainer: Trainer) -> bool:
    """Whether each device holds only a part of the weights."""
    return isinstance(trainer.strategy, FSDPStrategy | ModelParallelStrategy)


def advice(
    trainer: Trainer, module: LightningModule, data: LightningDataModule | None, training: bool = True
) -> list[Advice]:
    """Settings that need less memory: first those that do not change the result."""
    ours = module if isinstance(module, FineTuningModule) else None
    chats = data if isinstance(data, ChatDataModule) else None
    found: list[Advice] = []
    if training and ours:
        found += _checkpointing(ours)
    if chats:
        found += _train_batch(chats, trainer.accumulate_grad_batches) if training else _val_batch(chats)
    if ours:
        found += [*_reference(ours), *_chunk(ours)]
    if training:
        found += [*_sharding(trainer), *_precision(trainer)]
    return [*found, _length(chats)] if chats else found


def _checkpointing(module: FineTuningModule) -> Iterator[Advice]:
    if module.gradient_checkpointing is not True:
        now = str(module.gradient_checkpointing).lower()
        why = "keeps one activation per layer, about a third more time"
        yield Advice("model.gradient_checkpointing", now, "true", why)


def _train_batch(data: ChatDataModule, accumulate: int) -> Iterator[Advice]:
    size = data.train_batch_size
    if data.max_batch_tokens:
        now, better = data.max_batch_tokens, data.max_batch_tokens // 2
        yield Advice("data.max_batch_tokens", str(now), str(better), "fewer positions in each micro-batch")
    elif size > 1:
        windows = accumulate * size // (size // 2)
        why = f"with trainer.accumulate_grad_batches: {windows}, each step has as many rows"
        yield Advice("data.train_batch_size", str(size), str(size // 2), why)


def _val_batch(data: ChatDataModule) -> Iterator[Advice]:
    if data.val_batch_size > 1:
        now, better = data.val_batch_size, data.val_batch_size // 2
        yield Advice("data.val_batch_size", str(now), str(better), "metrics stay the same")


def _reference(module: FineTuningModule) -> Iterator[Advice]:
    if isinstance(module, DPOModule) and module.scorer.mode in ("frozen", "offloaded"):
        why = "no second model in memory: one pass over all pairs before training"
        yield Advice("model.reference", module.scorer.mode, "precomputed", why)


def _chunk(module: FineTuningModule) -> Iterator[Advice]:
    if module.chunk_size > SMALL_CHUNK:
        why = "smaller chunks of logits"
        yield Advice("model.chunk_size", str(module.chunk_size), str(SMALL_CHUNK), why)


def _sharding(trainer: Trainer) -> Iterator[Advice]:
    if not is_sharded(trainer) and trainer.num_devices * trainer.num_nodes > 1:
        why = "weights, gradients and optimizer state are divided among the devices"
        yield Advice("trainer.strategy", type(trainer.strategy).__name__, "fsdp", why)


def _precision(trainer: Trainer) -> Iterator[Advice]:
    """On a GPU alone: on a CPU, bf16-mixed takes no less memory than fp32."""
    now = str(trainer.precision)
    if trainer.strategy.root_device.type != "cuda" or now == "bf16-true":
        return
    if now == "32-true":
        yield Advice("trainer.precision", now, "bf16-mixed", "activations of half the size, and faster")
    else:
        why = "weights, gradients and optimizer state of half the size; small updates are lost"
        yield Advice("trainer.precision", now, "bf16-true", why)


def _length(data: ChatDataModule) -> Advice:
    """The last resort: it changes the data."""
    if data.packs:
        longest = data.pack_length
        return Advice("data.pack_length", str(longest), str(longest // 2), "with data.max_length not above it")
    longest = data.max_length
    return Advice("data.max_length", str(longest), str(longest // 2), "longer rows are truncated or dropped")
