"""What every contender is given and what it gives back: one plan, one clock, one measure of memory."""

import json
import resource
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

Task = Literal["sft", "dpo"]
Contender = Literal["smollit", "smollit-tuned", "trl", "trl-tuned", "floor"]
Precision = Literal["32-true", "bf16-mixed"]


@dataclass(frozen=True)
class RowSize:
    """Tokens of one row after truncation to `max_length`.

    Args:
        prompt: Tokens that the responses share; 0 for a chat.
        responses: Tokens of each response; for a chat one number, the whole chat.
        loss_tokens: Tokens with a loss.
    """

    prompt: int
    responses: list[int]
    loss_tokens: int

    @property
    def tokens(self) -> int:
        """Real tokens: a chat's own; for a pair prompt + chosen + prompt + rejected, whatever a tool computes."""
        return sum(self.prompt + response for response in self.responses)


@dataclass(frozen=True)
class Plan:
    """The same for all contenders. Rows stand in the order of the steps, the warm-up first."""

    task: Task
    model: str
    rows: str
    sizes: list[RowSize]
    max_length: int
    examples_per_step: int
    steps: int
    warmup: int
    precision: Precision
    device: Literal["cpu", "cuda"]
    seed: int
    learning_rate: float
    gradient_checkpointing: bool
    trl_compile: bool
    floor_size: int

    @property
    def num_steps(self) -> int:
        """Warm-up and measured steps."""
        return self.warmup + self.steps

    def measured_sizes(self) -> list[RowSize]:
        """Rows of the measured steps."""
        return self.sizes[self.warmup * self.examples_per_step :]

    def save(self, path: Path) -> Path:
        """Write as JSON."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")
        return path


def load_plan(path: Path) -> Plan:
    """Read what `Plan.save` wrote."""
    fields = json.loads(path.read_text(encoding="utf-8"))
    return Plan(**fields | {"sizes": [RowSize(**size) for size in fields["sizes"]]})


@dataclass
class Recorder:
    """Times and numbers of each step; waits for the device only where the measured steps begin and end.

    A step lasts from the end of the step before it to its own end: loading, forward, backward, optimizer, logs.
    """

    plan: Plan
    ends: list[float] = field(default_factory=list)
    tokens: list[int | Tensor] = field(default_factory=list)
    examples: list[int | Tensor] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    before_training: int = 0
    built: float = field(default_factory=time.perf_counter)
    seconds_before_training: float = 0.0
    precompute_seconds: float = 0.0  # of that, the reference's scores of all rows, where a tool says it

    def start(self) -> None:
        """Training is about to begin."""
        self.seconds_before_training = time.perf_counter() - self.built
        self.before_training = resident_bytes(self.plan.device)
        self.ends.append(time.perf_counter())

    def add_batch(self, loss: Tensor, tokens: int | Tensor, examples: int | Tensor) -> None:
        """Keep numbers as they are: reading a tensor would make the device wait."""
        self.losses.append(loss.detach())
        self.tokens.append(tokens)
        self.examples.append(examples)

    def end_step(self) -> None:
        """A step is over."""
        if self.plan.device == "cuda" and len(self.ends) in (self.plan.warmup, self.plan.num_steps):
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())

    def result(self, settings: dict[str, Any], reference_in_step: bool) -> dict[str, Any]:
        """All that a contender says, JSON-able; `reference_in_step`: each step has a reference's forward."""
        return {
            "seconds": [end - start for start, end in zip(self.ends, self.ends[1:], strict=False)],
            "tokens": [int(value) for value in self.tokens],
            "examples": [int(value) for value in self.examples],
            "losses": [float(value) for value in self.losses],
            "peak_memory": peak_bytes(self.plan.device),
            "memory_before_training": self.before_training,
            "seconds_before_training": self.seconds_before_training,
            "precompute_seconds": self.precompute_seconds,
            "reference_in_step": reference_in_step,
            "settings": settings,
        }


def peak_bytes(device: str) -> int:
    """The most memory at one time: of tensors on the GPU, or of this process.

    Not `ru_maxrss` on Linux: a process inherits it from the one that started it.
    """
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return status_bytes("VmHWM")


def resident_bytes(device: str) -> int:
    """Memory now, as `peak_bytes` counts it."""
    return torch.cuda.memory_allocated() if device == "cuda" else status_bytes("VmRSS")


def status_bytes(name: str) -> int:
    """A value of /proc/self/status; where there is none (macOS), the peak of memory."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith(f"{name}:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
