"""FSDP and FSDP2: wrap each decoder layer and the CausalLM, and the norm of sharded gradients."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp.wrap import wrap
from torch.distributed.tensor import DTensor

from smollit.models.causal_lm import CausalLM


def shard(model: CausalLM, mesh: DeviceMesh | None) -> nn.Module:
    """Shard a model layer by layer, with the tied embedding and head together in the root.

    Args:
        model: Policy or reference.
        mesh: The data-parallel mesh of FSDP2. Without one, FSDP wraps inside Lightning's FSDP context; anywhere else
            the model is returned unchanged.
    """
    layers = decoder_layers(model)
    if mesh is None:
        for index, layer in enumerate(layers):
            layers[index] = wrap(layer)
        return wrap(model)
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)  # autocast, not this policy, decides what to compute in
    # The root frees the gathered weights in the backward pass, which a frozen reference does not have.
    frozen = not any(parameter.requires_grad for parameter in model.parameters())
    for layer in layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=True if frozen else None)
    return model


def decoder_layers(model: CausalLM) -> nn.ModuleList:
    """The list of decoder layers, which are compiled and sharded one by one: `layers` of Llama, `h` of GPT-2.

    Raises:
        ValueError: If the model has none.
    """
    count = model.config.num_hidden_layers
    for module in model.model.base_model.modules():  # outer ones come first: experts are inside of a layer
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise ValueError(f"a {model.config.model_type} model has no list of its {count} decoder layers, as Llama has")


def is_sharded(model: nn.Module) -> bool:
    """Whether each rank holds only a part of the weights, under FSDP or FSDP2."""
    return isinstance(model, FullyShardedDataParallel | FSDPModule)


@contextmanager
def unsynchronized(model: nn.Module) -> Iterator[None]:
    """Keep the gradients of backward passes inside on their own rank; the first one after it reduces all of them.

    So each rank holds whole gradients until then, not shards of them.
    """
    # Both kinds pass it on to the modules below; a frozen reference has no gradients.
    roots = [part for part in model.children() if is_sharded(part)]
    with ExitStack() as stack:
        for root in roots:
            if isinstance(root, FullyShardedDataParallel):
                stack.enter_context(root.no_sync())
            elif isinstance(root, FSDPModule):
                root.set_requires_gradient_sync(False)
                stack.callback(root.set_requires_gradient_sync, True)
        yield


def unwrap(model: nn.Module) -> CausalLM:
    """The CausalLM inside an FSDP wrapper, or the model itself."""
    inner = model.module if isinstance(model, FullyShardedDataParallel) else model
    assert isinstance(inner, CausalLM), f"expected a CausalLM, got {type(inner)}"
    return inner


def gradient_norm(model: nn.Module) -> Tensor:
    """The 2-norm of all gradients of all ranks, a scalar."""
    if isinstance(model, FullyShardedDataParallel):
        return model.clip_grad_norm_(float("inf"))
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def scale_gradients(parameters: Iterable[nn.Parameter], factor: Tensor | float) -> None:
    """Multiply all gradients in place; works on the local shards."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if gradients:
        torch._foreach_mul_([each.to_local() if isinstance(each, DTensor) else each for each in gradients], factor)
