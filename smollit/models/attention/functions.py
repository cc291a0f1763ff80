"""The attention functions of smollit, under names of their own in transformers.

They read the layout of the batch from here, where `use_layout` sets it around a forward pass: many models do not hand
further arguments on to the attention function, and their documents would attend to each other in silence.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from smollit.batch import Document, Joined
from smollit.functional.attention import AttentionBackend, ScoreOptions, document_attention
from smollit.functional.varlen import VarlenKernel, joined_attention
from smollit.models.attention.kernels import fits_kernel, kernel_for

Mask = Tensor | BlockMask | None


class Layout:
    """What attention functions read about a batch.

    It is an object, because torch.compile would compile anew for each list of lengths.

    Args:
        documents: The documents of the joined sequence, for `documents`.
        joined: The same with boundaries, for `varlen`.
        masks: The mask for each sliding window of the model (None: no window), for the other backends.
    """

    def __init__(
        self,
        documents: Sequence[Document] = (),
        joined: Joined | None = None,
        masks: Mapping[int | None, Mask] | None = None,
    ) -> None:
        self.documents = documents
        self.joined = joined
        self.masks = masks or {}


class _Current:
    """The layout of the running forward pass. One for all threads: autograd recomputes layers in threads of its own."""

    layout: Layout | None = None


_current = _Current()


@contextmanager
def use_layout(layout: Layout | None) -> Iterator[None]:
    """Let the attention functions read this layout inside the block."""
    before, _current.layout = _current.layout, layout
    try:
        yield
    finally:
        _current.layout = before


def current_layout() -> Layout | None:
    """The layout of the running forward pass; None outside of one."""
    return _current.layout


def _outside(module: nn.Module, *inputs: Any, **arguments: Any) -> tuple[Tensor, Tensor | None]:
    """The model's own attention and mask, where the transformers model is called without CausalLM."""
    if torch._C._current_graph_task_id() != -1:
        # Plain attention would let packed documents attend to each other.
        raise RuntimeError(
            "a layer is recomputed in the backward pass without the layout of its batch: use"
            " `model.gradient_checkpointing`, not activation checkpointing of the strategy; and no `model.compile` if"
            " the model has dropout or a softcap"
        )
    return _eager_attention_of(module)(module, *inputs, **arguments)


def _eager_attention_of(module: nn.Module) -> Any:
    """The plain attention of the model's own file: it knows the model's caps and sinks."""
    return vars(importlib.import_module(type(module).__module__))["eager_attention_forward"]


def _attend_joined(kernels: Callable[[Tensor], VarlenKernel | None]) -> Any:
    """An attention function over joined documents, by one call of a kernel where there is one for the layer."""

    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: object,
        *,
        scaling: float | None = None,
        dropout: float = 0.0,
        sliding_window: int | None = None,
        softcap: float | None = None,
        **kwargs: Any,  # arguments that transformers' models pass to any backend
    ) -> tuple[Tensor, Tensor | None]:
        layout = _current.layout
        if layout is None:
            own = {"sliding_window": sliding_window, "softcap": softcap} | kwargs
            return _outside(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **own)
        # Under autocast, rotary embeddings leave queries and keys in fp32: cast once, not in each call of a kernel.
        query, key = query.to(value.dtype), key.to(value.dtype)
        options = ScoreOptions(scaling, dropout, sliding_window, softcap)
        kernel = kernels(query)
        if kernel is not None and layout.joined is not None and fits_kernel(query, value, options):
            output = joined_attention(query, key, value, layout.joined, kernel=kernel, options=options)
        else:
            output = _document_attention(query, key, value, layout.documents, **options._asdict())
        # transformers' attention functions put heads after positions.
        return output.transpose(1, 2).contiguous(), None

    return attend


_document_attention = torch.compiler.disable(document_attention)


def _attend_with_mask(name: str) -> Any:
    """An attention function of transformers, with the mask of the layout and of the layer's window."""

    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: object,
        *,
        sliding_window: int | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        layout = _current.layout
        if layout is None:
            return _outside(module, query, key, value, attention_mask, sliding_window=sliding_window, **kwargs)
        function = ALL_ATTENTION_FUNCTIONS[name] if name != "eager" else _eager_attention_of(module)
        mask = layout.masks[sliding_window]
        return function(module, query, key, value, mask, sliding_window=sliding_window, **kwargs)

    return attend


NAMES: dict[AttentionBackend, str] = {
    name: f"smollit_{name}" for name in ("varlen", "documents", "sdpa", "eager", "flex_attention")
}
ALL_ATTENTION_FUNCTIONS.register(NAMES["documents"], _attend_joined(lambda query: None))
ALL_ATTENTION_FUNCTIONS.register(NAMES["varlen"], _attend_joined(kernel_for))
for _backend in ("sdpa", "eager", "flex_attention"):
    ALL_ATTENTION_FUNCTIONS.register(NAMES[_backend], _attend_with_mask(_backend))
for _name in NAMES.values():
    ALL_MASK_ATTENTION_FUNCTIONS.register(_name, eager_mask)  # of `_outside`
