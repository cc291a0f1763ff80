"""An emulated CUDA device: tensors that say `cuda:0` and hold a CPU tensor, refused and waited for as CUDA does it.

`install` changes torch for the whole process, for good: only the program of these tests calls it.
"""

import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from tests.emulated_gpu import kernel
from tests.modules.test_waits import WAITING

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")
ATEN = torch.ops.aten
KERNELS = {"torch_attn::_varlen_attn": kernel.forward, "torch_attn::_varlen_attn_backward": kernel.backward}
BY_INDEX = (ATEN.index.Tensor, ATEN.index_put.default, ATEN.index_put_.default, ATEN._index_put_impl_.default)
WAITS: Counter[str] = Counter()  # for what the host waited, and in which lines
WITHOUT_INPUTS = torch.library.Library("_", "IMPL")  # of operations that make tensors; it ends with its last reference


class EmulatedTensor(Tensor):
    """A tensor that says `cuda:0`, and computes on the CPU what CUDA would compute.

    Args:
        inner: The CPU tensor that it holds.
    """

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> "EmulatedTensor":
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        tensor = Tensor._make_wrapper_subclass(cls, inner.size(), device=GPU, **layout)
        tensor.inner = inner
        return tensor

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = operation.decompose(*args, **kwargs)  # into operations that `call` knows: inference mode does not do it
        return call(operation, *args, **kwargs) if found is NotImplemented else found

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.detach().cpu().__reduce_ex__(protocol)  # in a file

    def tolist(self) -> Any:
        return self.detach().cpu().tolist()

    def numpy(self, *args: Any, **options: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")


def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
    """Run an operation on what the tensors hold; its results are on the GPU if an input is, or if `device` says so.

    Raises:
        RuntimeError: Where CUDA raises one: tensors on two devices, or a generator of another device.
    """
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    is_ours = [isinstance(tensor, EmulatedTensor) for tensor in tensors]
    device = kwargs.get("device")
    on_gpu = any(is_ours) if device is None else torch.device(device).type == "cuda"
    if on_gpu and isinstance(kwargs.get("generator"), torch.Generator):
        raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
    on_cpu = [tensor for tensor, ours in zip(tensors, is_ours, strict=True) if tensor.dim() and not ours]
    if any(is_ours) and on_cpu and operation not in (ATEN.copy_.default, *BY_INDEX):
        raise RuntimeError(f"Expected all tensors to be on the same device, but found cuda:0 and cpu ({operation})")
    if reason := wait_at(operation, args, kwargs, on_gpu):
        WAITS[f"{reason} at {lines()}"] += 1
    known = {id(inner_of(tensor)): tensor for tensor in tensors}  # what an operation in place returns
    args, kwargs = tree_map(inner_of, (args, kwargs))
    own = {"device": CPU, "pin_memory": False}
    kwargs |= {name: own[name] for name in kwargs.keys() & own if kwargs[name] is not None}
    result = KERNELS.get(operation.name(), operation)(*args, **kwargs)

    def outer_of(value: Any) -> Any:
        is_new = isinstance(value, Tensor) and id(value) not in known
        return EmulatedTensor(value) if is_new and on_gpu else known.get(id(value), value)

    return tree_map(outer_of, result)


def inner_of(value: Any) -> Any:
    return value.inner if isinstance(value, EmulatedTensor) else value


def wait_at(operation: Any, args: Any, kwargs: Any, on_gpu: bool) -> str | None:
    """Why the host waits for the GPU at an operation; None if it does not."""
    is_ours = [isinstance(arg, EmulatedTensor) for arg in args]
    if operation in (ATEN._to_copy.default, ATEN.copy_.default):
        across = is_ours[0] != (is_ours[1] if operation is ATEN.copy_.default else on_gpu)
        waits = across and not (args[2] if len(args) > 2 else kwargs.get("non_blocking"))
        return "a copy between CPU and GPU" if waits else None
    if operation in BY_INDEX and is_ours[0]:
        indices = [index for index in args[1] if index is not None]
        if any(index.dtype == torch.bool or not isinstance(index, EmulatedTensor) for index in indices):
            return "an index by a mask, or from the CPU"
    repeats = operation is ATEN.repeat_interleave.Tensor and kwargs.get("output_size") is None
    return str(operation) if any(is_ours) and (repeats or operation in WAITING) else None


def lines() -> str:
    """The four innermost lines outside of torch and of this folder."""
    here, frames = str(Path(__file__).parent), traceback.extract_stack()
    outside = [frame for frame in frames if "/torch/" not in frame.filename and not frame.filename.startswith(here)]
    return " < ".join(f"{frame.filename}:{frame.lineno}" for frame in outside[:-5:-1])


# What torch.cuda says of the device, by the name of the function.
ANSWERS: dict[str, Any] = {
    "is_available": True,
    "device_count": 1,
    "current_device": 0,
    "get_device_capability": (9, 0),
    "get_device_name": "emulated GPU",
    "is_bf16_supported": True,
    "mem_get_info": (2**37, 2**37),
    "memory_allocated": 0,
    "get_rng_state": torch.zeros(16, dtype=torch.uint8),
} | dict.fromkeys(
    ["_lazy_init", "set_device", "set_rng_state", "manual_seed_all", "empty_cache", "reset_peak_memory_stats"]
)
PEAKS = iter(range(2**20, 2**40, 2**20))  # in bytes: each is larger than the one before


def install() -> None:
    """Make torch believe in one CUDA device. device.cpp is preloaded: torch asks for it while it is imported."""
    torch._C._set_only_lift_cpu_tensors(True)
    torch.__future__.set_swap_module_params_on_conversion(True)  # `.data = ` would leave `inner` as it was
    for name, answer in ANSWERS.items():
        setattr(torch.cuda, name, lambda *args, answer=answer, **options: answer)
    torch.cuda.max_memory_allocated = lambda *args: next(PEAKS)
    torch.cuda.synchronize = lambda *args: WAITS.update([f"synchronize at {lines()}"])
    torch.accelerator.current_accelerator = lambda **options: GPU
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    Tensor.pin_memory = lambda tensor, *args: tensor
    WITHOUT_INPUTS.fallback(call, "CUDA")
