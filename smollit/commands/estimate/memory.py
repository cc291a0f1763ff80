"""Memory of a training step: formulas for what does not depend on the batch, and a count of what autograd saves."""

import math
import weakref
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from smollit.batch import Batch
from smollit.commands.estimate.epoch import Moment
from smollit.modules import DPOModule, FineTuningModule

Parts = dict[str, int]  # bytes by name
PROBABILITY_BYTES = 8  # of each logit in a chunk: an fp32 logit, and its fp32 log-probability or gradient


class StepMemory(NamedTuple):
    """What a forward and backward pass holds, by formulas.

    Args:
        fixed: Bytes of weights, reference, gradients and optimizer state.
        saved: Bytes that autograd saves in the forward pass, for each position.
        head: Bytes of the logits of one chunk.
    """

    fixed: Parts
    saved: float
    head: int

    def at(self, moment: Moment) -> Parts:
        """Bytes of each part."""
        present = {"gradients": moment.gradients, "optimizer": moment.optimizer}
        parts = {name: size * present.get(name, True) for name, size in self.fixed.items()}
        return parts | {"activations": int(self.saved * moment.size), "head chunk": self.head}

    def peak(self, moments: Sequence[Moment]) -> Parts:
        """Bytes of each part at the moment that needs the most."""
        return max((self.at(moment) for moment in moments), key=total)


def total(parts: Parts) -> int:
    """Bytes of all parts."""
    return sum(parts.values())


def fixed_parts(module: FineTuningModule) -> Parts:
    """Bytes of weights, reference, gradients and optimizer state of a module on one device."""
    reference = module.reference if isinstance(module, DPOModule) and module.scorer.has_model else None
    return {
        "weights": tensor_bytes(module.policy),
        "reference": tensor_bytes(reference) if reference is not None else 0,
        "gradients": sum(parameter.nbytes for parameter in trainable(module)),
        "optimizer": optimizer_bytes(module),
    }


def tensor_bytes(model: nn.Module) -> int:
    """Bytes of parameters and buffers; tied ones count once."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def trainable(module: FineTuningModule) -> list[nn.Parameter]:
    """The parameters that training changes."""
    return [parameter for parameter in module.policy.parameters() if parameter.requires_grad]


def optimizer_bytes(module: FineTuningModule) -> int:
    """Bytes of the optimizer's state, from a real step on one tensor of each shape, on the CPU."""
    total = 0
    for (shape, dtype), count in Counter((weight.shape, weight.dtype) for weight in trainable(module)).items():
        weight = nn.Parameter(torch.zeros(shape, dtype=dtype))
        weight.grad = torch.zeros_like(weight)
        optimizer = module.optimizer([weight])
        optimizer.step()
        total += count * sum(value.nbytes for value in optimizer.state[weight].values() if isinstance(value, Tensor))
    return total


def head_bytes(module: FineTuningModule, batch: Batch) -> int:
    """Bytes of the logits of one chunk, with their log-probabilities."""
    weight = module.policy.model.get_output_embeddings().weight  # type: ignore[operator,union-attr]
    tokens = batch.num_loss_tokens
    chunk = math.ceil(tokens / math.ceil(tokens / module.chunk_size)) if tokens else 0
    return chunk * len(weight) * PROBABILITY_BYTES


def saved_bytes(module: FineTuningModule, batch: Batch) -> int:
    """Bytes that autograd saves in the forward pass of a micro-batch, besides parameters and buffers.

    Saved tensors are counted and not kept, so the pass needs little more memory than the weights.
    """
    model = module.policy
    seen = weakref.WeakSet(tensor.untyped_storage() for tensor in (*model.parameters(), *model.buffers()))
    total = 0

    def count(tensor: Tensor) -> None:
        nonlocal total
        storage = tensor.untyped_storage()
        if storage not in seen:
            seen.add(storage)
            total += storage.nbytes()

    with torch.autograd.graph.saved_tensors_hooks(count, lambda nothing: nothing):
        module.step(batch, "train")
    return total
