"""Gradient checkpointing: what a layer keeps for the backward pass, and what it recomputes."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from transformers import PreTrainedModel

from smollit.models.attention.functions import current_layout, use_layout

GradientCheckpointing = bool | Literal["selective"]
MATRIX_PRODUCTS = {torch.ops.aten.mm.default, torch.ops.aten.bmm.default, torch.ops.aten.addmm.default}
ATTENTION = ("scaled_dot_product", "varlen_attn")  # parts of the names of attention kernels


def recompute_layers(model: PreTrainedModel, *, selective: bool, compiled: bool = False) -> None:
    """Recompute each decoder layer in the backward pass: all of it, or all but matrix products and attention.

    A compiled layer is recomputed inside its graph, which has the layout of its forward pass.
    """
    # The re-entrant variant needs inputs that require gradients, and breaks DDP.
    options: dict[str, Any] = {"use_reentrant": False}
    if not compiled:
        options["context_fn"] = partial(_contexts, selective)
    elif selective:
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    # transformers 5.24 has renamed the method, and warns about the old name.
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable(options)


def _contexts(selective: bool) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """The contexts of a layer's forward pass, which calls this, and of its recomputation in the backward pass.

    The recomputation reads the layout of this forward pass: that of a later one, or none, may be set by then.
    """
    layout = current_layout()
    forward, recomputed = create_selective_checkpoint_contexts(_policy) if selective else (nullcontext(), nullcontext())
    return forward, _both(use_layout(layout), recomputed)


@contextmanager
def _both(first: AbstractContextManager[Any], second: AbstractContextManager[Any]) -> Iterator[None]:
    with first, second:
        yield


def _policy(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Keep the results of the expensive operations; all others are cheap to compute again."""
    expensive = operation in MATRIX_PRODUCTS or any(name in str(operation) for name in ATTENTION)
    return CheckpointPolicy.MUST_SAVE if expensive else CheckpointPolicy.PREFER_RECOMPUTE
