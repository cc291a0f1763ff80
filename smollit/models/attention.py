"""The attention backends that transformers does not have by itself, and what each backend is given for a batch."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import is_flash_attn_2_available

from smollit.batch import Batch, Document
from smollit.functional.attention import (
    WITHOUT_PADDING,
    AttentionBackend,
    attention_mask,
    document_attention,
    mask_for,
)

DOCUMENTS = "smollit_documents"  # what transformers calls our backend


class Inputs(NamedTuple):
    """What the decoder gets.

    Args:
        input_ids: [R, T], or [1, all real positions] for the backends without padding.
        position_ids: Likewise; None counts from 0 in each row.
        mask: What the backend takes as its mask; None is causal.
        loss_positions: [M] positions that have a label, counted through `input_ids`.
        options: What else the backend reads.
    """

    input_ids: Tensor
    position_ids: Tensor | None
    mask: Any
    loss_positions: Tensor
    options: dict[str, Any]


class Layout:
    """The documents of a joined row. An object, not a list: torch.compile would make code for each list of lengths."""

    def __init__(self, documents: Sequence[Document]) -> None:
        self.documents = documents


@torch.compiler.disable
def _attend_documents(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    smollit_layout: Layout | None = None,
    **kwargs: Any,  # what transformers' models pass to any backend
) -> tuple[Tensor, None]:
    """`document_attention` in transformers' form: heads go behind positions.

    Without a layout, as in generation, it is transformers' own sdpa.
    """
    if smollit_layout is None:
        plain = ALL_ATTENTION_FUNCTIONS["sdpa"]
        return plain(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs)  # type: ignore[return-value]
    output = document_attention(query, key, value, smollit_layout.documents, scale=scaling, dropout=dropout)
    return output.transpose(1, 2).contiguous(), None


ALL_ATTENTION_FUNCTIONS.register(DOCUMENTS, _attend_documents)


def transformers_name(backend: AttentionBackend) -> str:
    """What transformers calls a backend.

    Raises:
        ValueError: If this machine can't run it.
    """
    if backend == "flash_attention_2" and not is_flash_attn_2_available():
        raise ValueError(
            "`model.attention: flash_attention_2` needs a CUDA GPU and the package flash-attn: take `documents`"
        )
    return DOCUMENTS if backend == "documents" else backend


@contextmanager
def for_generation(model: PreTrainedModel) -> Iterator[None]:
    """Attention with the mask of left padding, which transformers drops for a backend that it does not know."""
    backend = model.config._attn_implementation
    model.set_attn_implementation("sdpa" if backend == DOCUMENTS else backend)
    try:
        yield
    finally:
        model.set_attn_implementation(backend)


def render(batch: Batch, backend: AttentionBackend, dtype: torch.dtype) -> Inputs:
    """A batch as a backend takes it.

    Raises:
        ValueError: If the backend has no branches and the batch has.
    """
    if backend in WITHOUT_PADDING:
        return without_padding(batch, backend)
    if batch.causal:
        # Plain causal attention: padding is on the right, where no token looks. Position ids that start again at the
        # padding would make transformers build a mask, and leave its fast kernels.
        return Inputs(batch.input_ids, None, None, batch.loss_positions, {})
    if backend == "flex_attention":
        mask: Any = block_mask(batch)
    else:
        mask = mask_for(backend, attention_mask(batch.document, batch.branch), dtype)  # type: ignore[arg-type]
    return Inputs(batch.input_ids, batch.position_ids, mask, batch.loss_positions, {})


def without_padding(batch: Batch, backend: AttentionBackend) -> Inputs:
    """All rows joined into one, without their padding; lengths come from the layout, so the device is not asked."""
    width = batch.input_ids.shape[1]
    # The empty batch has one position of padding, so that every rank runs the same operations.
    layout = batch.layout or ((Document(1),),)
    lengths = [sum(document.length for document in row) for row in layout]
    device = batch.input_ids.device
    starts = torch.tensor([sum(lengths[:row]) for row in range(len(lengths))]).to(device, non_blocking=True)
    row = batch.loss_positions.div(width, rounding_mode="floor")
    documents = [document for row_layout in layout for document in row_layout]
    return Inputs(
        torch.cat([ids[:length] for ids, length in zip(batch.input_ids, lengths, strict=True)])[None],
        torch.cat([places[:length] for places, length in zip(batch.position_ids, lengths, strict=True)])[None],
        None,
        batch.loss_positions - row * width + starts[row],
        {"smollit_layout": Layout(documents)} if backend == "documents" else flash_options(documents, device),
    )


def flash_options(documents: Sequence[Document], device: torch.device) -> dict[str, Any]:
    """The borders of the documents, as flash-attn's kernels for rows of several sequences take them."""
    if any(document.responses for document in documents):
        raise ValueError(
            "`model.attention: flash_attention_2` can't let two answers share a prompt: take `documents` or"
            " `flex_attention` for DPO"
        )
    lengths = torch.tensor([0, *(document.length for document in documents)])
    borders = lengths.cumsum(0).to(torch.int32).to(device, non_blocking=True)
    longest = int(lengths.max())
    return {"cu_seq_lens_q": borders, "cu_seq_lens_k": borders, "max_length_q": longest, "max_length_k": longest}


def block_mask(batch: Batch) -> BlockMask:
    """The rule of `functional.attention.attention_mask` as FlexAttention takes it."""
    document, branch = batch.document, batch.branch

    def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        same_document = document[row, query] == document[row, key]
        same_branch = (branch[row, key] == 0) | (branch[row, key] == branch[row, query])
        return same_document & same_branch & (key <= query)

    rows, length = document.shape
    return create_block_mask(sees, rows, None, length, length, device=document.device)
