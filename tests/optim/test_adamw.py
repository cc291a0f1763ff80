"""AdamW with fp32 state: torch's AdamW for fp32 weights, and nothing forgotten for bf16 ones."""

import copy

import torch
from torch import nn
from torch.optim import AdamW

from smollit.optim.adamw import AdamWFp32


def steps(optimizer: torch.optim.Optimizer, weight: nn.Parameter, count: int) -> None:
    for step in range(count):
        weight.grad = torch.sin(torch.arange(5.0) + step).to(weight.dtype)
        optimizer.step()


# promise: adamw
def test_fp32_weights_are_torchs_to_the_bit() -> None:
    ours, theirs = (nn.Parameter(torch.linspace(-1, 1, 5)) for _ in range(2))
    options = {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}
    steps(AdamWFp32([ours], **options), ours, 4)  # type: ignore[arg-type]
    steps(AdamW([theirs], **options), theirs, 4)  # type: ignore[arg-type]
    assert torch.equal(ours, theirs)


# promise: adamw
def test_small_updates_of_bf16_weights_add_up() -> None:
    """Adam's steps with an equal gradient are lr each: 1 - 100 x 1e-3 = 0.9. In bf16, 1 - 1e-3 rounds back to 1."""
    ours, plain = (nn.Parameter(torch.ones(5, dtype=torch.bfloat16)) for _ in range(2))
    for weight, optimizer in ((ours, AdamWFp32([ours], lr=1e-3)), (plain, AdamW([plain], lr=1e-3, weight_decay=0.0))):
        for _ in range(100):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.float(), torch.full((5,), 0.9), rtol=1 / 256, atol=0)
    assert torch.equal(plain, torch.ones_like(plain))


def test_the_state_is_restored_in_fp32() -> None:
    """Two steps, saved and loaded, and two more: the master copy equals that of four steps, to the bit."""
    whole, half = (nn.Parameter(torch.linspace(-1, 1, 5).bfloat16()) for _ in range(2))
    optimizer = AdamWFp32([whole], lr=0.01)
    steps(optimizer, whole, 2)
    saved = copy.deepcopy(optimizer.state_dict())
    half.data.copy_(whole)
    second = AdamWFp32([half], lr=0.01)
    second.load_state_dict(saved)
    steps(optimizer, whole, 2)
    steps(second, half, 2)
    assert second.state[half]["master"].dtype == torch.float32
    assert torch.equal(second.state[half]["master"], optimizer.state[whole]["master"])
    assert torch.equal(half, whole)


def test_weights_without_gradients_and_closures() -> None:
    weight, idle = (nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = AdamWFp32([{"params": [weight]}, {"params": [idle], "lr": 0.5}], lr=0.1)

    def closure() -> float:
        weight.grad = torch.ones(2)
        return 7.0

    assert optimizer.step(closure) == 7.0
    torch.testing.assert_close(weight.data, torch.full((2,), 0.9))
    assert torch.equal(idle, torch.ones(2))
    assert not optimizer.state[idle]
