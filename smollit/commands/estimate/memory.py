"""What is alive in memory at each operation of an optimizer step: run on tensors that have a shape and no content."""

import copy
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from smollit.batch import Batch
from smollit.modules import DPOModule, FineTuningModule

PARTS = ("weights", "reference", "gradients", "optimizer", "activations", "head chunk")
Parts = dict[str, int]  # bytes of each of `PARTS`, and of what is beside them
# On a CPU, glibc keeps what is freed (`training.memory`), and its heap has holes. Measured with glibc 2.36 on
# SmolLM2-135M, seven settings of estimate_check.py: they are this share (0.09 to 0.16) of all tensors below HEAP_LIMIT
# that one forward pass makes. Larger ones are few, and take each other's places.
HEAP_LIMIT = 32 * 1024**2
HEAP_HOLES = 0.13


class LiveMemory(TorchDispatchMode):
    """Bytes of the tensors that are alive, by part, after every operation, and the parts at the highest point.

    Kernels' own short-lived memory is not seen.

    Args:
        device: Tensors elsewhere do not count.
        vocabulary: Tensors whose last dimension has this size belong to the head.
    """

    def __init__(self, device: torch.device, vocabulary: int) -> None:
        super().__init__()
        self.device = device
        self.vocabulary = vocabulary
        self.creating = "activations"  # what a new tensor is, unless it is the head's
        self.live: Counter[str] = Counter()
        self.peak: Parts = dict.fromkeys(PARTS, 0)
        self.total = self.peak_total = 0
        self.made = 0  # bytes of all tensors below HEAP_LIMIT, freed or not
        self.made_forward = 0  # by the forward pass that made most
        self.entries: weakref.WeakKeyDictionary[Any, list[Any]] = weakref.WeakKeyDictionary()  # storage: [part, bytes]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor):
                self.note(tensor)
        return output

    def note(self, tensor: Tensor) -> None:
        """Count a tensor's storage, if it is new."""
        storage = tensor.untyped_storage()
        if storage in self.entries or tensor.device.type != self.device.type:
            return
        is_head = self.creating == "activations" and tensor.dim() > 1 and tensor.shape[-1] == self.vocabulary
        entry = self.entries[storage] = ["head chunk" if is_head else self.creating, storage.nbytes()]
        weakref.finalize(storage, self._release, entry).atexit = False
        self.live[entry[0]] += entry[1]
        self.total += entry[1]
        # A pass without gradients frees what it makes in order, and leaves no holes.
        self.made += entry[1] * (entry[1] < HEAP_LIMIT and torch.is_grad_enabled())
        if self.total > self.peak_total:
            self.peak_total = self.total
            self.peak = {part: self.live[part] for part in PARTS}

    def assign(self, tensors: Sequence[Tensor], part: str) -> None:
        """Say what tensors are, new or known."""
        before, self.creating = self.creating, part
        for tensor in tensors:
            self.note(tensor)
            entry = self.entries.get(tensor.untyped_storage())
            if entry is not None:  # else it is elsewhere
                self.live[entry[0]] -= entry[1]
                self.live[part] += entry[1]
                entry[0] = part
        self.creating = before

    def _release(self, entry: list[Any]) -> None:
        self.live[entry[0]] -= entry[1]
        self.total -= entry[1]


def peak_parts(
    module: FineTuningModule,
    first: Sequence[Batch],
    later: Sequence[Batch],
    accumulates: bool,
    device: torch.device,
    context: Callable[[], AbstractContextManager[Any]],
) -> Parts:
    """The parts at the highest point of the first optimizer step and of a later one.

    Nothing of the model's size is allocated, and no device computes.

    Args:
        module: With its policy, and its reference if it has one, loaded.
        first: Micro-batches of the first step: there is no optimizer state yet.
        later: Micro-batches of a later step; none if there is but one step.
        accumulates: A step has several micro-batches: gradients of some are there already.
        device: Where training runs.
        context: What forward passes run in: autocast of the trainer's precision.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    twin = fake_twin(module, mode, device)
    with mode:
        with LiveMemory(device, twin.policy.config.vocab_size) as live:  # type: ignore[arg-type,union-attr]
            policy = list(twin.policy.parameters())
            live.assign([*policy, *twin.policy.buffers()], "weights")
            if isinstance(twin, DPOModule) and twin.scorer.has_model:
                live.assign(list(twin.reference.parameters()), "reference")
            for parameter in policy:
                parameter.register_post_accumulate_grad_hook(lambda p: live.assign([p.grad], "gradients"))
            optimizer = make_optimizer(twin, device)
            live.assign(state_tensors(optimizer), "optimizer")  # some, as Adagrad, make it at once
            _step(twin, optimizer, [fake_batch(batch, device) for batch in first], live, context, True)
            if later:
                _step(twin, optimizer, [fake_batch(batch, device) for batch in later], live, context, not accumulates)
        holes = HEAP_HOLES * live.made_forward if device.type == "cpu" and sys.platform == "linux" else 0
        return {**live.peak, "allocator": int(holes)}


def _step(
    twin: FineTuningModule,
    optimizer: Optimizer,
    batches: Sequence[Batch],
    live: LiveMemory,
    context: Callable[[], AbstractContextManager[Any]],
    clears: bool,
) -> None:
    """Forward and backward of each micro-batch, and the optimizer's step."""
    for place, batch in enumerate(batches):
        made = live.made
        with context():
            loss = twin.step(batch, "train")[0] / twin.nominal_count
        live.made_forward = max(live.made_forward, live.made - made)
        if clears and not place:
            optimizer.zero_grad()  # as Lightning does: old gradients outlast the forward pass
        loss.backward()
        del loss
    live.creating = "optimizer"
    optimizer.step()
    live.assign(state_tensors(optimizer), "optimizer")
    live.creating = "activations"


def state_tensors(optimizer: Optimizer) -> list[Tensor]:
    """All tensors that an optimizer keeps."""
    return [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]


def make_optimizer(twin: FineTuningModule, device: torch.device) -> Optimizer:
    """The module's optimizer; on a GPU with the loops over all tensors at once that torch takes there by itself."""
    optimizer = twin.optimizer([parameter for parameter in twin.policy.parameters() if parameter.requires_grad])
    for group in optimizer.param_groups:
        if device.type == "cuda" and "foreach" in group and not group.get("fused"):
            group["foreach"] = True
    return optimizer


def fake_twin(module: FineTuningModule, mode: FakeTensorMode, device: torch.device) -> FineTuningModule:
    """A copy whose weights have shape, dtype and device, and no content. Tied weights stay tied."""
    memo: dict[int, Any] = {}
    with mode:
        keep(memo, module.policy, device)
        if isinstance(module, DPOModule) and module.scorer.has_model:
            offloaded = module.scorer.mode == "offloaded"
            keep(memo, module.reference, torch.device("cpu") if offloaded else device)
    twin = copy.deepcopy(module, memo)
    twin.metrics.to(device)
    twin.policy.train()
    if isinstance(twin, DPOModule):
        twin.loss = replace(twin.loss, scores="ignore")  # gaps are looked at, and fake ones can't be
    return twin


def keep(memo: dict[int, Any], model: nn.Module, device: torch.device) -> None:
    """Tell deepcopy what stands for each tensor of a model."""
    for tensor in [*model.parameters(), *model.buffers()]:
        fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(fake, requires_grad=tensor.requires_grad) if is_parameter else fake


def fake_batch(batch: Batch, device: torch.device) -> Batch:
    """The batch's shapes on the device, without content; only the layout is real."""
    return batch._replace(
        **{  # type: ignore[arg-type]  # the layout is no tensor
            name: torch.empty(value.shape, dtype=value.dtype, device=device)
            for name, value in batch._asdict().items()
            if isinstance(value, Tensor)
        }
    )
