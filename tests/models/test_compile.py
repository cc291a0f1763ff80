"""torch.compile of the layers: it compiles, or logs that it does not."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from smollit.functional.attention import AttentionBackend
from smollit.models import CausalLM
from smollit.models.compile import compile_layers
from tests.conftest import batch_of, example_chats


@pytest.fixture(autouse=True)
def _new_compiler() -> Iterator[None]:
    torch.compiler.reset()  # earlier tests of this process may have compiled the same layers
    counters.clear()
    yield
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attention", "checkpointing", "compiles"),
    [("documents", False, True), ("sdpa", False, True), ("sdpa", True, True), ("documents", True, False)],
)
def test_layers_compile_or_a_warning_says_that_they_do_not(
    tiny_model: Path,
    caplog: pytest.LogCaptureFixture,
    attention: AttentionBackend,
    checkpointing: bool,
    compiles: bool,
) -> None:
    """torch's own count of graphs; with a loss and gradients equal to those of the plain model."""
    found = []
    for compiled in (False, True):
        model = CausalLM(str(tiny_model), attention=attention, gradient_checkpointing=checkpointing)
        with caplog.at_level(logging.WARNING):
            if compiled:
                compile_layers(model)
        loss = model(batch_of(example_chats())).sums.sum()
        loss.backward()
        found.append((loss, {name: parameter.grad for name, parameter in model.named_parameters()}))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)
    assert (counters["stats"]["unique_graphs"] > 0) == compiles
    assert ("`model.compile` has no effect" in caplog.text) != compiles
