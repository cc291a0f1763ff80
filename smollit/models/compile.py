"""torch.compile of the decoder layers, in place."""

import logging

from smollit.models.causal_lm import CausalLM
from smollit.models.sharding import decoder_layers

log = logging.getLogger(__name__)


def compile_layers(model: CausalLM) -> None:
    """Compile each decoder layer: all have the same code, so one compilation serves all of them.

    In place: names of parameters, and so checkpoints, stay the same. Lengths are dynamic. Attention over documents is
    left out, because its loop depends on the batch.
    """
    if model.attention == "documents" and model.model.is_gradient_checkpointing:
        log.warning(
            "`model.compile` has no effect with `model.gradient_checkpointing` and `model.attention: documents`: torch"
            " compiles no layer that is recomputed and holds code that is left out. Set `model.attention: sdpa`"
        )
    for layer in decoder_layers(model):
        layer.compile(dynamic=True)
