"""The kernel of `varlen`: which layers it computes, and the comparison before a run, with a stand-in for CUDA."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from smollit.batch import Joined
from smollit.functional.attention import ScoreOptions
from smollit.functional.varlen import varlen_reference
from smollit.models import CausalLM
from smollit.models.attention import kernels
from tests.conftest import batch_of, chats_of, example_pairs
from tests.models.families import save_family

CPU = torch.device("cpu")
HEADS = (4, 2, 16)


def aligned_at_the_start(query: Tensor, key: Tensor, value: Tensor, joined: Joined, *, options: ScoreOptions) -> Tensor:
    """A kernel whose first query attends to the first key: right for chats, wrong for responses that share a prompt."""
    starts, counts = joined.key_boundaries.tolist(), joined.query_boundaries.diff().tolist()
    index = torch.cat([torch.arange(start, start + count) for start, count in zip(starts, counts, strict=False)])
    alone = joined._replace(key_boundaries=joined.query_boundaries)
    return varlen_reference(query, key[index], value[index], alone, options=options)


def without_gradient(*inputs: Any, **options: Any) -> Tensor:
    """Right values, wrong gradients."""
    output = varlen_reference(*inputs, **options)
    return output.detach() + 0.5 * (output - output.detach())


def missing(*inputs: Any, **options: Any) -> Tensor:
    raise RuntimeError("no kernel image is available")


# promise: varlen
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_kernel_is_compared_with_documents(dtype: torch.dtype) -> None:
    """Values and gradients; half precision may round as `documents` does."""
    with torch.no_grad():  # as where scores are precomputed
        assert kernels.kernel_is_right(varlen_reference, CPU, dtype, HEADS)
    for kernel in (aligned_at_the_start, without_gradient, missing):
        assert not kernels.kernel_is_right(kernel, CPU, dtype, HEADS)  # type: ignore[arg-type]


@pytest.mark.parametrize(("kernel", "backend"), [(varlen_reference, "varlen"), (aligned_at_the_start, "documents")])
def test_auto_takes_the_kernel_where_it_runs_and_is_right(
    kernel: Any, backend: str, tiny_model: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU; a kernel that is not right there is named, and `documents` is used."""
    monkeypatch.setattr("smollit.models.attention.verify.obstacle", lambda *_: None)
    monkeypatch.setattr("smollit.models.attention.verify.torch_kernel", kernel)
    assert CausalLM(str(tiny_model)).attention == backend
    assert ("is not right on cpu" in caplog.text) == (backend == "documents")


@pytest.mark.parametrize(
    ("device", "dtype", "reason"),
    [("cpu", torch.bfloat16, "CUDA"), ("cuda", torch.float32, "float32"), ("cuda:0", torch.float16, "Ampere")],
)
def test_obstacles_are_named(device: str, dtype: torch.dtype, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU, full precision, and a GPU of compute capability 7.5."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert reason in str(kernels.obstacle(torch.device(device), dtype))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    assert kernels.obstacle(torch.device("cuda"), torch.bfloat16) is None


@pytest.mark.parametrize(
    ("family", "options", "reason"),
    [("Gemma 2", {}, "softcap"), ("Llama, SmolLM, SmolLM2", {"dropout": 0.1}, "dropout")],
)
def test_layers_that_the_kernel_does_not_know_are_computed_by_documents(
    family: str, options: dict[str, Any], reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The reason is said once; the scores are those of `documents`."""
    kernels._say_once.cache_clear()
    folder, sums = save_family(family, tmp_path / "model"), []
    for attention in ("varlen", "documents"):
        with caplog.at_level(logging.INFO):
            model = CausalLM(str(folder), attention=attention, **options)  # type: ignore[arg-type]
            torch.manual_seed(0)
            sums.append(model(batch_of(chats_of([5, 6, 7, 8], [9, 10, 11]), packed=True)).sums)
    assert torch.equal(*sums)
    assert caplog.text.count(reason) == 1


# promise: varlen
def test_one_call_per_layer(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """8 pairs in one batch, 2 layers, forward: 2 calls, with int32 boundaries that collate has made."""
    calls = []

    def counting(*inputs: Any, **options: Any) -> Tensor:
        boundaries = inputs[3].query_boundaries
        calls.append((boundaries.dtype, boundaries.numel()))
        return varlen_reference(*inputs, **options)

    model, batch = CausalLM(str(tiny_model), attention="varlen"), batch_of(example_pairs(8))
    monkeypatch.setattr(kernels, "varlen_reference", counting)
    model(batch)
    assert batch.joined is not None
    assert calls == [(torch.int32, 17)] * 2
