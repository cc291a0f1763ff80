"""torch.compile of the layers: one graph for each kind of layer, whatever the lengths."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from smollit.batch import Joined
from smollit.functional.attention import AttentionBackend, ScoreOptions
from smollit.models import CausalLM
from smollit.models.compile import compile_layers
from smollit.models.recompute import GradientCheckpointing
from tests.conftest import batch_of, example_chats
from tests.models.families import save_family


@pytest.fixture(autouse=True)
def _new_compiler() -> Iterator[None]:
    torch.compiler.reset()  # earlier tests of this process may have compiled the same layers
    counters.clear()
    yield
    torch.compiler.reset()


def traceable_kernel(q: Tensor, k: Tensor, v: Tensor, joined: Joined, *, options: ScoreOptions) -> Tensor:
    """A stand-in for CUDA's kernel that the compiler can trace: one mask over all queries and keys."""
    ends_q, ends_k = joined.query_boundaries[1:], joined.key_boundaries[1:]
    groups = q.shape[1] // k.shape[1]
    query, key = torch.arange(q.shape[0]), torch.arange(k.shape[0])
    of_query, of_key = torch.bucketize(query, ends_q, right=True), torch.bucketize(key, ends_k, right=True)
    distance = (ends_q[of_query] - query)[:, None] - (ends_k[of_key] - key)[None, :]
    allowed = (of_query[:, None] == of_key[None, :]) & (distance <= 0)
    allowed &= distance > -joined.longest_key  # which CUDA's kernel reads: all numbers that it reads count
    if options.window is not None:
        allowed &= distance > -options.window
    k, v = (tensor.repeat_interleave(groups, dim=1).transpose(0, 1) for tensor in (k, v))
    scores = q.transpose(0, 1) @ k.transpose(1, 2) * (options.scale or q.shape[2] ** -0.5)
    return (scores.masked_fill(~allowed, -torch.inf).softmax(dim=2) @ v).transpose(0, 1)


@pytest.mark.slow
def test_documents_with_checkpointing_do_not_compile_and_say_so(
    tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The loss is computed all the same."""
    model = CausalLM(str(tiny_model), attention="documents", gradient_checkpointing=True)
    compile_layers(model)
    model(batch_of(example_chats())).sums.sum().backward()
    assert "`model.compile` has no effect" in caplog.text


# promise: compile
@pytest.mark.slow
@pytest.mark.parametrize("attention", ["varlen", "sdpa"])
@pytest.mark.parametrize("checkpointing", [False, True, "selective"])
@pytest.mark.parametrize(("family", "kinds"), [("Llama, SmolLM, SmolLM2", 1), ("Gemma 3", 2)])
def test_one_graph_for_each_kind_of_layer(
    tmp_path: Path,
    attention: AttentionBackend,
    checkpointing: GradientCheckpointing,
    family: str,
    kinds: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By torch's own count, after generation and with three batches of other lengths; Gemma 3 has layers with a window
    and without. Loss and gradients equal those of the plain model."""
    monkeypatch.setattr("smollit.models.attention.kernels.varlen_reference", traceable_kernel)
    folder, found = save_family(family, tmp_path / "model"), []
    batches = [batch_of(example_chats(count), packed=True) for count in (8, 5, 7)]
    for compiled in (False, True):
        model = CausalLM(str(folder), attention=attention, gradient_checkpointing=checkpointing)
        if compiled:
            compile_layers(model)
        model.generate(batch_of(example_chats(2)), 3, [2])
        assert counters["stats"]["unique_graphs"] == 0
        loss = torch.stack([model(batch).sums.sum() for batch in batches]).sum()
        loss.backward()
        found.append((loss, {name: parameter.grad for name, parameter in model.named_parameters()}))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)
    assert counters["stats"]["unique_graphs"] == kinds
