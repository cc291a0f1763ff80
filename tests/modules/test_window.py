"""One optimizer step is that of one large batch, however the window was split: against plain transformers and torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.optim import SGD, AdamW
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM

from smollit.batch import Batch
from smollit.modules import DPOModule, FineTuningModule, SFTModule
from smollit.training import SmollitTrainer
from tests.conftest import QUIET, batch_of, example_chats, example_pairs, fit_batches

LEARNING_RATE = 0.05
CHATS, PAIRS = example_chats(), example_pairs()  # chat i has i + 1 loss tokens
Weights = dict[str, Tensor]


def sgd(params: Any) -> SGD:
    return SGD(params)


def adamw(params: Any) -> AdamW:
    return AdamW(params, weight_decay=0.1)


def make(kind: str, model: Path, optimizer: OptimizerCallable = sgd, **options: Any) -> FineTuningModule:
    options = {"learning_rate": LEARNING_RATE, "schedule": "constant", "optimizer": optimizer} | options
    return SFTModule(str(model), **options) if kind == "sft" else DPOModule(str(model), **options)


def batches(kind: str, sizes: Sequence[int]) -> list[Batch]:
    """The 8 examples in micro-batches of these sizes."""
    examples = CHATS if kind == "sft" else PAIRS
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    return [batch_of(examples[start : start + size]) for start, size in zip(starts, sizes, strict=True)]


def weights(module: nn.Module) -> Weights:
    return {name.removeprefix("policy.model."): tensor.detach().clone() for name, tensor in module.named_parameters()}


def assert_close(found: Weights, expected: Weights, tolerance: float = 1e-6) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(
            found[name], tensor, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


def plain_logps(model: nn.Module, prompt: list[int], response: list[int]) -> Tensor:
    """Sum of log p(response | prompt) from all logits of one sequence."""
    logits = model(torch.tensor([prompt + response]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits, dim=1).gather(1, torch.tensor(response)[:, None]).sum()


def plain_loss(kind: str, model: nn.Module, reference: nn.Module, examples: list[dict[str, Any]]) -> Tensor:
    """Token mean of -log p (SFT), or pair mean of -log sigmoid(0.1 margin) (DPO), written out."""
    if kind == "sft":
        total = sum(plain_logps(model, chat["input_ids"][:2], chat["input_ids"][2:]) for chat in examples)
        return -total / sum(len(chat["input_ids"]) - 2 for chat in examples)
    losses = []
    for pair in examples:
        scores = []
        for name in ("chosen_ids", "rejected_ids"):
            with torch.no_grad():
                before = plain_logps(reference, pair["prompt_ids"], pair[name])
            scores.append(plain_logps(model, pair["prompt_ids"], pair[name]) - before)
        losses.append(-F.logsigmoid(0.1 * (scores[0] - scores[1])))
    return torch.stack(losses).mean()


def plain_steps(
    kind: str, folder: Path, windows: list[list[int]], optimizer: OptimizerCallable, clip: float = 0
) -> Weights:
    """Optimizer steps of plain transformers and torch on windows of examples."""
    model, reference = (AutoModelForCausalLM.from_pretrained(folder) for _ in range(2))
    stepper = optimizer(model.parameters())
    for group in stepper.param_groups:
        group["lr"] = LEARNING_RATE
    for window in windows:
        examples = CHATS if kind == "sft" else PAIRS
        stepper.zero_grad()
        plain_loss(kind, model, reference, [examples[index] for index in window]).backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        stepper.step()
    return weights(model)


# case: metrics-01, dpo-loss-05
@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_any_split_of_the_window_gives_the_step_of_plain_torch(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    """8 examples as 1x8, 2x4, 8x1 and 1+2+5, SGD, 2 epochs: weights equal to 1e-6."""
    expected = plain_steps(kind, tiny_model, [list(range(8))] * 2, sgd)
    for sizes in ([1] * 8, [2] * 4, [8], [1, 2, 5]):
        module = make(kind, tiny_model)
        fit_batches(module, batches(kind, sizes), tmp_path, accumulate_grad_batches=len(sizes), max_epochs=2)
        assert_close(weights(module), expected)


# promise: one-step
# case: metrics-01, dpo-loss-05
@pytest.mark.parametrize("kind", ["sft", "dpo"])
@pytest.mark.slow
def test_any_split_gives_the_same_adamw_steps(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    """AdamW with weight decay, lr 1e-4, 2 steps: 1x8 and 2x4 against 8x1, to 1e-6."""
    found = []
    for sizes in ([8], [1] * 8, [2] * 4):
        module = make(kind, tiny_model, adamw, learning_rate=1e-4)
        fit_batches(module, batches(kind, sizes), tmp_path, accumulate_grad_batches=len(sizes), max_epochs=2)
        found.append(weights(module))
    assert (found[0]["model.norm.weight"] - 1).abs().max() > 1e-5  # it moved
    for other in found[1:]:
        assert_close(other, found[0])


# case: metrics-04
@pytest.mark.parametrize("kind", ["sft", "dpo"])
@pytest.mark.parametrize(
    ("accumulate", "windows"), [(2, [[0, 1], [2, 3], [4]]), (8, [[0, 1, 2, 3, 4]])], ids=["5 by 2", "5 of 8"]
)
def test_a_last_partial_window_counts_what_it_holds(
    kind: str, accumulate: int, windows: list[list[int]], tiny_model: Path, tmp_path: Path
) -> None:
    """5 micro-batches, accumulate 2: the third step is the mean of one; accumulate 8: one step, the mean of five."""
    module = make(kind, tiny_model)
    fit_batches(module, batches(kind, [1] * 5), tmp_path, accumulate_grad_batches=accumulate)
    assert_close(weights(module), plain_steps(kind, tiny_model, windows, sgd))


# case: fsdp-01
@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_clipping_by_norm_comes_after_the_division(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    """Clip at 0.01, far below the norm: equal to clip_grad_norm_ on the mean's gradient, for 1x8 and 8x1; the logged
    norm is the one before clipping."""
    expected = plain_steps(kind, tiny_model, [list(range(8))], sgd, clip=0.01)
    norms = []
    for sizes in ([1] * 8, [8]):
        module = make(kind, tiny_model)
        fit_batches(module, batches(kind, sizes), tmp_path, accumulate_grad_batches=len(sizes), gradient_clip_val=0.01)
        assert_close(weights(module), expected)
        assert module.gradient_norm is not None
        norms.append(module.gradient_norm.item())
    before = weights(AutoModelForCausalLM.from_pretrained(tiny_model))
    moved = torch.stack([(weights(module)[name] - before[name]).norm() for name in before]).norm()
    assert moved.item() == pytest.approx(LEARNING_RATE * 0.01, rel=1e-3)
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    assert norms[0] > 0.01


def test_clipping_by_value_comes_after_the_division(tiny_model: Path, tmp_path: Path) -> None:
    """Clip at 1e-3: no weight moves by more than lr x 1e-3, and some by just that."""
    module = make("sft", tiny_model)
    fit_batches(
        module,
        batches("sft", [1] * 8),
        tmp_path,
        accumulate_grad_batches=8,
        gradient_clip_val=1e-3,
        gradient_clip_algorithm="value",
    )
    before = weights(AutoModelForCausalLM.from_pretrained(tiny_model))
    moved = max((weights(module)[name] - before[name]).abs().max().item() for name in before)
    assert moved == pytest.approx(LEARNING_RATE * 1e-3, rel=1e-3)


# case: A9
@pytest.mark.parametrize("algorithm", ["norm", "value"])
@pytest.mark.parametrize("limit", [0, -1])
def test_a_clip_limit_of_zero_and_below_is_off(tiny_model: Path, tmp_path: Path, limit: int, algorithm: str) -> None:
    """As in Lightning: one step of 8 examples is that of the unclipped gradient, and does not climb."""
    module = make("sft", tiny_model)
    clip = {"gradient_clip_val": limit, "gradient_clip_algorithm": algorithm}
    fit_batches(module, batches("sft", [8]), tmp_path, **clip)
    assert_close(weights(module), plain_steps("sft", tiny_model, [list(range(8))], sgd))


# case: mask-02
def test_batches_without_loss_tokens_neither_move_nor_count(tiny_model: Path, tmp_path: Path) -> None:
    """A window of a batch with 0 loss tokens and one with 3 is the window of the 3; a window of 0 moves nothing."""
    empty = batch_of([{"input_ids": [1, 5, 6], "spans": [], "row": 0}])
    module = make("sft", tiny_model)
    fit_batches(
        module, [empty, *batches("sft", [2]), empty, empty], tmp_path, accumulate_grad_batches=2, log_every_n_steps=1
    )
    assert_close(weights(module), plain_steps("sft", tiny_model, [[0, 1]], sgd))


# case: precision-01
def test_the_policy_trains_in_train_mode_after_validation_too(tiny_model: Path, tmp_path: Path) -> None:
    """from_pretrained gives eval mode: here every training step, over 2 epochs with validation, sees train mode and
    2 more layer forwards in the backward pass than in validation."""
    modes: list[bool] = []
    forwards: list[bool] = []

    class Watched(SFTModule):
        def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
            modes.extend(part.training for part in self.policy.modules())
            return super().training_step(batch, batch_idx)

        def configure_model(self) -> None:
            super().configure_model()
            for layer in self.policy.model.model.layers:  # type: ignore[union-attr]
                layer.self_attn.register_forward_hook(lambda *_: forwards.append(self.trainer.training))

    module = Watched(str(tiny_model), gradient_checkpointing=True)
    trainer = SmollitTrainer(str(tmp_path), max_epochs=2, **QUIET)
    loader = DataLoader(batches("sft", [4, 4]), batch_size=None)
    trainer.fit(module, loader, loader)
    assert modes
    assert all(modes)
    assert forwards.count(True) == 2 * 2 * 2 * 2  # epochs x batches x layers x (forward + recompute)


# promise: exact-metrics
# case: metrics-01
def test_the_logged_loss_is_the_mean_over_the_tokens_of_the_window(tiny_model: Path, tmp_path: Path) -> None:
    """Micro-batches with 1 and 8 loss tokens: logged is the mean of 9, as plain transformers has it."""
    logged = {}

    class Watched(SFTModule):
        def report(self, named: dict[str, Any]) -> None:
            logged.update(named)

    module = Watched(str(tiny_model))
    fit_batches(
        module,
        [batches("sft", [1])[0], batch_of([CHATS[7]])],
        tmp_path,
        accumulate_grad_batches=2,
        log_every_n_steps=1,
    )
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    expected = plain_loss("sft", model, model, [CHATS[0], CHATS[7]])
    assert logged["train/loss"].item() == pytest.approx(expected.item(), rel=1e-6)
    assert logged["train/learning_rate"] == 2e-5
