"""torch.compile of the decoder layers, in place."""

from smollit.models.causal_lm import CausalLM
from smollit.models.sharding import decoder_layers


def compile_layers(model: CausalLM) -> None:
    """Compile each decoder layer: all have one shape of code, so one compilation serves all of them.

    In place: names of parameters, and so checkpoints, stay the same. Lengths are dynamic, and attention over documents
    is left out, since its loop depends on the batch.
    """
    for layer in decoder_layers(model):
        layer.compile(dynamic=True)
