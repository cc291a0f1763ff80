"""The inputs of the decoder for a batch, in the form that each attention backend expects."""

from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import PreTrainedModel

from smollit.batch import Batch, Document, Joined
from smollit.functional.attention import WITHOUT_PADDING, AttentionBackend, attention_mask, mask_for
from smollit.models.attention.functions import Layout, Mask, use_layout


class DecoderInputs(NamedTuple):
    """The inputs of the decoder.

    Args:
        input_ids: [R, T], or [1, all positions that are not padding] for the backends without padding.
        position_ids: Likewise; None counts from 0 in each sequence.
        loss_positions: [M] positions that have a label, counted through `input_ids`.
        layout: What the attention functions read; None for the model's own attention.
    """

    input_ids: Tensor
    position_ids: Tensor | None
    loss_positions: Tensor
    layout: Layout | None


def loss_hidden_states(
    model: PreTrainedModel, batch: Batch, backend: AttentionBackend, windows: Collection[int | None]
) -> Tensor:
    """Last hidden states at the loss positions, [M, H], under the attention mask of documents and branches."""
    inputs = decoder_inputs(batch, backend, model.dtype, windows)
    # Our attention functions have their masks. Given one of four dimensions, transformers builds none.
    unused = inputs.input_ids.new_zeros(1, 1, 1, 1) if inputs.layout else None
    with use_layout(inputs.layout):
        # With a cache, transformers would ignore where position ids restart, and use more memory.
        output = model.base_model(
            input_ids=inputs.input_ids, position_ids=inputs.position_ids, attention_mask=unused, use_cache=False
        )
    return output.last_hidden_state.flatten(0, 1)[inputs.loss_positions]


def attention_windows(model: PreTrainedModel) -> frozenset[int | None]:
    """The sliding windows that layers may ask for; None is a layer without one."""
    settings = [model.config.to_dict(), *map(vars, model.modules())]
    found = (owner.get("sliding_window") for owner in settings)
    return frozenset([None, *(window for window in found if isinstance(window, int))])


def decoder_inputs(
    batch: Batch, backend: AttentionBackend, dtype: torch.dtype, windows: Collection[int | None] = (None,)
) -> DecoderInputs:
    """A batch in the form that a backend expects.

    Args:
        batch: Chats, or responses to prompts.
        backend: The attention backend.
        dtype: dtype of a mask that is added to the scores.
        windows: The sliding windows of the model's layers; None is a layer without one.

    Raises:
        ValueError: If sequences hold several documents, and the backend is `rows`.
    """
    if backend == "rows":
        return _rows(batch)
    if backend in WITHOUT_PADDING:
        return _without_padding(batch)
    longest = max((document.context_length for documents in batch.layout for document in documents), default=1)
    if backend == "sdpa" and batch.causal and all(window is None or longest <= window for window in windows):
        # Padding is on the right, where no token attends to it, so causal attention is right, by the fast kernels.
        layout = Layout(masks=dict.fromkeys(windows))
        return DecoderInputs(batch.input_ids, batch.position_ids, batch.loss_positions, layout)
    masks = {
        window: _mask(batch, backend, dtype, window if window and window < longest else None) for window in windows
    }
    return DecoderInputs(batch.input_ids, batch.position_ids, batch.loss_positions, Layout(masks=masks))


def _mask(batch: Batch, backend: AttentionBackend, dtype: torch.dtype, window: int | None) -> Mask:
    if backend == "flex_attention":
        return _block_mask(batch, window)
    mask_RTT = attention_mask(batch.document, batch.branch, position_RT=batch.position_ids, window=window)
    return mask_for(backend, mask_RTT, dtype)  # type: ignore[arg-type]


def _block_mask(batch: Batch, window: int | None) -> BlockMask:
    """The rule of `functional.attention.attention_mask` in the form of FlexAttention."""
    document, branch, position = batch.document, batch.branch, batch.position_ids

    def attends(sequence: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        same_document = document[sequence, query] == document[sequence, key]
        same_branch = (branch[sequence, key] == 0) | (branch[sequence, key] == branch[sequence, query])
        allowed = same_document & same_branch & (key <= query)
        return allowed if window is None else allowed & (position[sequence, query] - position[sequence, key] < window)

    num_sequences, length = document.shape
    return create_block_mask(attends, num_sequences, None, length, length, device=document.device)


def _without_padding(batch: Batch) -> DecoderInputs:
    """All sequences joined into one, without padding."""
    joined = batch.joined or Joined.of(
        batch.layout, width=batch.input_ids.shape[1], loss_positions=batch.loss_positions
    )
    documents = [document for documents in batch.layout for document in documents] or [Document(1)]
    ids, position_ids = (field.view(-1)[joined.positions][None] for field in (batch.input_ids, batch.position_ids))
    return DecoderInputs(ids, position_ids, joined.loss_positions, Layout(documents, joined))


def _rows(batch: Batch) -> DecoderInputs:
    """One padded row for each chat and each response, which begins with the prompt: for the model's own attention.

    Such a model may carry a state from token to token. So padding is on the right, and a prompt is computed once for
    each of its responses.
    """
    if any(len(documents) > 1 for documents in batch.layout):
        raise ValueError(
            "`model.attention: rows` computes one chat or response per row, and this batch has packed sequences: set"
            " `data.packing: off`"
        )
    width, device = batch.input_ids.shape[1], batch.input_ids.device
    rows = [
        row
        for number, documents in enumerate(batch.layout or ((Document(1),),))
        for row in _row_positions(documents[0], first=number * width)
    ]
    longest = max(map(len, rows))
    index = torch.tensor([row + [row[0]] * (longest - len(row)) for row in rows]).to(device, non_blocking=True)
    place = torch.zeros(batch.input_ids.numel(), dtype=torch.long)  # of each position; of a shared one, in the last row
    for number, row in enumerate(rows):
        place[row] = torch.arange(number * longest, number * longest + len(row))
    place = place.to(device, non_blocking=True)
    return DecoderInputs(batch.input_ids.view(-1)[index], None, place[batch.loss_positions], None)


def _row_positions(document: Document, first: int) -> list[list[int]]:
    """The positions of each response of a document with those of its prompt; of a chat, all in one row."""
    prompt, end = range(first, first + document.shared), first + document.shared
    rows = []
    for length in document.responses or (0,):
        rows.append([*prompt, *range(end, end + length)])
        end += length
    return rows
