"""The attention backend `documents`, and the inputs of every backend for a batch."""

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

DOCUMENTS = "smollit_documents"  # the name of `documents` in transformers


class DecoderInputs(NamedTuple):
    """The inputs of the decoder.

    Args:
        input_ids: [R, T], or [1, all positions that are not padding] for the backends without padding.
        position_ids: Likewise; None counts from 0 in each sequence.
        mask: The mask of the backend; None is causal.
        loss_positions: [M] positions that have a label, counted through `input_ids`.
        options: Further keyword arguments that the backend reads.
    """

    input_ids: Tensor
    position_ids: Tensor | None
    mask: Tensor | BlockMask | None
    loss_positions: Tensor
    options: dict[str, Any]


class JoinedLayout:
    """The documents of the joined sequence. An object: torch.compile would compile anew for each list of lengths."""

    def __init__(self, documents: Sequence[Document]) -> None:
        self.documents = documents


@torch.compiler.disable
def _attend_documents(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    smollit_layout: JoinedLayout | None = None,
    **kwargs: Any,  # arguments that transformers' models pass to any backend
) -> tuple[Tensor, None]:
    """`document_attention` with the signature of transformers' attention functions, which put heads after positions.

    Without a layout, as in generation, it is transformers' own sdpa.
    """
    if smollit_layout is None:
        plain = ALL_ATTENTION_FUNCTIONS["sdpa"]
        return plain(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs)
    output = document_attention(query, key, value, smollit_layout.documents, scale=scaling, dropout=dropout)
    return output.transpose(1, 2).contiguous(), None


ALL_ATTENTION_FUNCTIONS.register(DOCUMENTS, _attend_documents)


def transformers_name(backend: AttentionBackend) -> str:
    """The name of a backend in transformers.

    Raises:
        ValueError: If this machine can't run the backend.
    """
    if backend == "flash_attention_2" and not is_flash_attn_2_available():
        raise ValueError(
            "`model.attention: flash_attention_2` needs a CUDA GPU and the package flash-attn: use `documents`"
        )
    return DOCUMENTS if backend == "documents" else backend


@contextmanager
def attention_for_generation(model: PreTrainedModel, backend: AttentionBackend) -> Iterator[None]:
    """Switch `documents` to sdpa: transformers drops the mask of left padding for backends that it does not know."""
    if backend != "documents":
        yield
        return
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation(DOCUMENTS)


def decoder_inputs(batch: Batch, backend: AttentionBackend, dtype: torch.dtype) -> DecoderInputs:
    """A batch in the form that a backend expects.

    Raises:
        ValueError: If the batch has responses that share a prompt, and the backend does not support them.
    """
    if backend in WITHOUT_PADDING:
        return _without_padding(batch, backend)
    if batch.causal:
        # Padding is on the right, where no token attends to it, so causal attention is right. Position ids would start
        # again at the padding: transformers would then build a mask, and leave its fast kernels.
        return DecoderInputs(batch.input_ids, None, None, batch.loss_positions, {})
    if backend == "flex_attention":
        mask: Tensor | BlockMask = _block_mask(batch)
    else:
        mask = mask_for(backend, attention_mask(batch.document, batch.branch), dtype)  # type: ignore[arg-type]
    return DecoderInputs(batch.input_ids, batch.position_ids, mask, batch.loss_positions, {})


def _without_padding(batch: Batch, backend: AttentionBackend) -> DecoderInputs:
    """All sequences joined into one, without padding. Lengths come from the layout: no device synchronization."""
    width = batch.input_ids.shape[1]
    # The empty batch keeps one position of padding, so that every rank runs the same operations.
    layout = batch.layout or ((Document(1),),)
    lengths = [sum(document.length for document in documents) for documents in layout]
    device = batch.input_ids.device
    starts = torch.tensor([sum(lengths[:index]) for index in range(len(lengths))]).to(device, non_blocking=True)
    sequence = batch.loss_positions.div(width, rounding_mode="floor")
    joined = [document for documents in layout for document in documents]
    return DecoderInputs(
        torch.cat([ids[:length] for ids, length in zip(batch.input_ids, lengths, strict=True)])[None],
        torch.cat([ids[:length] for ids, length in zip(batch.position_ids, lengths, strict=True)])[None],
        None,
        batch.loss_positions - sequence * width + starts[sequence],
        {"smollit_layout": JoinedLayout(joined)} if backend == "documents" else _flash_options(joined, device),
    )


def _flash_options(documents: Sequence[Document], device: torch.device) -> dict[str, Any]:
    """The boundaries of the documents, in the form of flash-attn's kernels for packed sequences."""
    if any(document.responses for document in documents):
        raise ValueError(
            "`model.attention: flash_attention_2` does not support responses that share a prompt: use `documents` or"
            " `flex_attention` for DPO"
        )
    lengths = torch.tensor([0, *(document.length for document in documents)])
    boundaries = lengths.cumsum(0).to(torch.int32).to(device, non_blocking=True)
    longest = int(lengths.max())
    return {"cu_seq_lens_q": boundaries, "cu_seq_lens_k": boundaries, "max_length_q": longest, "max_length_k": longest}


def _block_mask(batch: Batch) -> BlockMask:
    """The rule of `functional.attention.attention_mask` in the form of FlexAttention."""
    document, branch = batch.document, batch.branch

    def attends(sequence: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        same_document = document[sequence, query] == document[sequence, key]
        same_branch = (branch[sequence, key] == 0) | (branch[sequence, key] == branch[sequence, query])
        return same_document & same_branch & (key <= query)

    num_sequences, length = document.shape
    return create_block_mask(attends, num_sequences, None, length, length, device=document.device)
