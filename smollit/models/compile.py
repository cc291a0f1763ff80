"""torch.compile of the decoder layers, in place."""

import logging

from smollit.models.causal_lm import CausalLM
from smollit.models.recompute import recompute_layers
from smollit.models.sharding import decoder_layers

log = logging.getLogger(__name__)


def compile_layers(model: CausalLM) -> None:
    """Compile each decoder layer: layers of one kind have the same code, so one compilation serves all of them.

    In place: names of parameters, and so checkpoints, stay the same. Lengths are dynamic. The attention of `documents`
    is left out, because its loop depends on the batch.
    """
    if model.attention == "documents" and model.gradient_checkpointing:
        log.warning(
            "`model.compile` has no effect with `model.gradient_checkpointing` and `model.attention: documents`: torch"
            " compiles no layer that is recomputed and holds code that is left out. Set `model.attention: sdpa`, or on"
            " CUDA `varlen`"
        )
        return
    if model.gradient_checkpointing:
        recompute_layers(model.model, selective=model.gradient_checkpointing == "selective", compiled=True)
    for layer in decoder_layers(model):
        layer.compile(dynamic=True)
