"""The floor: how long the matrix products of a step last at the rate that this machine reaches on a large product.

Counted are the least products that are known to do the step: real tokens only, a pair's prompt once, causal attention's
lower triangle, the head on loss tokens, nothing recomputed.
"""

import time
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from compare.record import Plan, RowSize

SECONDS = 3.0  # how long the rate is measured


class ModelSize(NamedTuple):
    """What decides the number of products.

    Args:
        body: Weights of the decoder's matrices, without embeddings and head.
        head: Weights of the head, vocabulary x hidden size.
        attention: Width of all heads together, summed over layers: heads x head size x layers.
    """

    body: int
    head: int
    attention: int


def model_size(model: str) -> ModelSize:
    """Read off a model without weights."""
    config = AutoConfig.from_pretrained(model)
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config)
    head = skeleton.get_output_embeddings()
    linears = [module for module in skeleton.modules() if isinstance(module, nn.Linear) and module is not head]
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return ModelSize(
        body=sum(linear.weight.numel() for linear in linears),
        head=head.weight.numel(),
        attention=config.num_attention_heads * head_size * config.num_hidden_layers,
    )


def forward_flops(size: ModelSize, row: RowSize) -> int:
    """Of one row: 2 per weight and token; 4 per pair of query and key and unit of width (scores, then values)."""
    tokens = row.prompt + sum(row.responses)
    seen = triangle(row.prompt) + sum(response * row.prompt + triangle(response) for response in row.responses)
    return 2 * size.body * tokens + 4 * size.attention * seen + 2 * size.head * row.loss_tokens


def attention_share(size: ModelSize, rows: list[RowSize]) -> float:
    """Products inside attention, over all other products."""
    inside = sum(forward_flops(ModelSize(0, 0, size.attention), row) for row in rows)
    return inside / sum(forward_flops(size._replace(attention=0), row) for row in rows)


def triangle(length: int) -> int:
    """Pairs of a query and a key that is not later."""
    return length * (length + 1) // 2


def step_flops(size: ModelSize, rows: list[RowSize], reference: bool) -> int:
    """Forward and backward (twice the forward) of the policy, and the forward of a reference if there is one."""
    return (4 if reference else 3) * sum(forward_flops(size, row) for row in rows)


def product_rate(side: int, device: str, dtype: torch.dtype) -> float:
    """FLOP/s of side x side products, after one to warm up."""
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    _ = left @ right
    _wait(device)
    start, products = time.perf_counter(), 0
    while not products or time.perf_counter() - start < SECONDS:
        for _ in range(10 if device == "cuda" else 1):
            _ = left @ right
            products += 1
        _wait(device)
    return products * 2 * side**3 / (time.perf_counter() - start)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def run(plan: Plan) -> dict[str, Any]:
    """Rate and products of the measured steps: of the policy alone, and with a reference's forward."""
    dtype = torch.float32 if plan.precision == "32-true" else torch.bfloat16
    size, rows = model_size(plan.model), plan.measured_sizes()
    return {
        "flops_per_s": product_rate(plan.floor_size, plan.device, dtype),
        "flops": step_flops(size, rows, reference=False),
        "flops_with_reference": step_flops(size, rows, reference=plan.task == "dpo"),
    }
