"""Operations per micro-batch, counted on a CPU: on a GPU, each one is at least one launch of a kernel.

    python benchmarks/operations.py

A model of SmolLM2-135M's 30 layers, but narrow: the width does not change the number of operations. The attention of
`varlen` is a stand-in that counts as one operation forward and one backward, as the kernel on CUDA does.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM

from smollit.batch import Batch
from smollit.data.batching.collate import collate_chats, collate_pairs
from smollit.models.attention import kernels
from smollit.modules import DPOModule, FineTuningModule, SFTModule

Kind = Literal["sft", "dpo"]
LAYERS = 30
VIEWS = {torch.ops.aten.detach.default, torch.ops.aten._unsafe_view.default}  # in all but name
LIMITS: dict[Kind, int] = {"sft": 6_000, "dpo": 8_000}


class Count(TorchDispatchMode):
    """Counts the operations inside a `with` block that compute something: views launch nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += not func.is_view and func not in VIEWS
        return func(*args, **(kwargs or {}))


@torch.library.custom_op("smollit_benchmarks::attention", mutates_args=())
def stand_in(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The shape of attention's output, by one operation."""
    return torch.zeros_like(query)


@torch.library.custom_op("smollit_benchmarks::attention_backward", mutates_args=())
def _stand_in_backward(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)


stand_in.register_autograd(
    lambda ctx, gradient: _stand_in_backward(*ctx.saved_tensors),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)


def narrow_model(folder: Path) -> Path:
    """A folder with a random model of 30 layers and a hidden size of 32."""
    config = AutoConfig.for_model(
        "llama",
        vocab_size=256,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def batch_of(kind: Kind) -> Batch:
    """32 chats, or 8 pairs, of 20 to 60 tokens, each in a row of its own."""
    if kind == "sft":
        ids = [[(7 * row + index) % 250 + 3 for index in range(20 + row)] for row in range(32)]
        return collate_chats([[{"input_ids": one, "spans": [5, len(one)], "row": 0}] for one in ids])
    prompt = list(range(3, 23))
    return collate_pairs(
        [
            [{"prompt_ids": prompt, "chosen_ids": prompt[: 8 + row], "rejected_ids": prompt[: 16 - row], "row": 0}]
            for row in range(8)
        ]
    )


def count(kind: Kind, attention: Literal["varlen", "documents"], model: Path) -> int:
    """Operations of one micro-batch: policy, reference, loss, metrics, and the backward pass."""
    options: dict[str, Any] = {"attention": attention}
    module: FineTuningModule = (SFTModule if kind == "sft" else DPOModule)(str(model), **options)
    module.configure_model()
    batch, before = batch_of(kind), kernels.varlen_reference
    kernels.varlen_reference = lambda q, k, v, *_, **__: stand_in(q, k, v)  # type: ignore[assignment]
    try:
        module.training_step(batch, 0).backward()  # once before: metrics and gradients are made at the first step
        with Count() as counted:
            module.training_step(batch, 1).backward()
    finally:
        kernels.varlen_reference = before
    return counted.operations


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = narrow_model(Path(folder))
        print("| micro-batch | `documents` | `varlen` | limit |\n|---|---|---|---|")
        for name, title in (("sft", "32 chats"), ("dpo", "8 pairs, with a frozen reference")):
            found = [f"{count(name, backend, path):,}" for backend in ("documents", "varlen")]  # type: ignore[arg-type]
            print(f"| {title} | {' | '.join(found)} | {LIMITS[name]:,} |")  # type: ignore[index]


if __name__ == "__main__":
    main()
