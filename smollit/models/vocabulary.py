"""One embedding for each token of the data's tokenizer."""

import logging

import torch
from torch import nn
from transformers import PreTrainedModel

log = logging.getLogger(__name__)


@torch.no_grad()
def fit_vocabulary(model: PreTrainedModel, vocabulary_size: int, can_grow: bool) -> None:
    """Add embeddings for new tokens; never remove any.

    New rows are the mean of the old ones, in the embeddings and in the head. So a new token starts as an average one,
    and policy and reference start equal.

    Args:
        model: A transformers model; tied embeddings stay tied.
        vocabulary_size: Number of tokens of the tokenizer.
        can_grow: Whether `data.add_tokens` is set.

    Raises:
        ValueError: If a token has no embedding and none may be added.
    """
    embeddings = model.get_input_embeddings()
    assert isinstance(embeddings, nn.Embedding)
    before = embeddings.num_embeddings
    if vocabulary_size <= before:
        return
    if not can_grow:
        raise ValueError(
            f"the tokenizer has {vocabulary_size:,} tokens, but the model has embeddings for {before:,}: use the"
            " model's tokenizer, or set `data.add_tokens: true` to add embeddings for the others"
        )
    model.resize_token_embeddings(vocabulary_size, mean_resizing=False)
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        assert isinstance(layer, nn.Embedding | nn.Linear)
        for tensor in (layer.weight, layer.bias if isinstance(layer, nn.Linear) else None):
            if tensor is not None:
                tensor[before:] = tensor[:before].mean(dim=0, dtype=torch.float32).to(tensor.dtype)
    log.info("embeddings grew from %s to %s, for new tokens", f"{before:,}", f"{vocabulary_size:,}")
