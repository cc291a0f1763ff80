"""SFTModule: loss, metrics, precision and refusals."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.plugins.precision import MixedPrecision
from torch.amp import GradScaler
from torch.distributions import Categorical
from torch.optim import SGD, AdamW
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM
from transformers.optimization import Adafactor

from smollit.batch import Batch
from smollit.data.batching.collate import collate_chats, unpacked
from smollit.functional.scores import TokenScores
from smollit.losses import NLL, CompletionLoss
from smollit.modules import SFTModule
from smollit.optim.optimizer import set_learning_rate
from smollit.training import SmollitTrainer
from tests.conftest import QUIET, batch_of

CHATS = [{"input_ids": list(range(30, 32 + 2 * i)), "spans": [1, 2 + 2 * i], "row": i} for i in range(5)]


def trainer(folder: Path, **options: Any) -> SmollitTrainer:
    return SmollitTrainer(str(folder), **{"max_epochs": 1, **QUIET, **options})


def loader(size: int, chats: list[dict[str, Any]] = CHATS) -> DataLoader[Batch]:
    batches = [collate_chats(unpacked(chats[start : start + size])) for start in range(0, len(chats), size)]
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


def plain_nll(folder: Path, chat: dict[str, Any]) -> torch.Tensor:
    """transformers' own loss, a mean over the loss tokens of one row."""
    ids = torch.tensor([chat["input_ids"]])
    return AutoModelForCausalLM.from_pretrained(folder)(input_ids=ids, labels=ids).loss.detach()


def test_it_works_without_a_trainer(tiny_model: Path) -> None:
    """Sum of -log p and number of loss tokens of a chat with 1 + 3 tokens: mean equals transformers' loss."""
    module = SFTModule(str(tiny_model))
    module.configure_model()
    loss_sum, count = module.step(collate_chats(unpacked(CHATS[1:2])), "train")
    assert count == 3
    torch.testing.assert_close(loss_sum / 3, plain_nll(tiny_model, CHATS[1]), rtol=1e-5, atol=0)
    loss_sum.backward()


def test_validation_logs_the_entropy_of_the_model(tiny_model: Path, tmp_path: Path) -> None:
    """Mean over the 1 + 3 + 5 + 7 + 9 loss tokens, from transformers' logits and torch.distributions."""
    found = trainer(tmp_path).validate(SFTModule(str(tiny_model)), loader(2), verbose=False)[0]["val/entropy"]
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    logits = torch.cat([model(torch.tensor([chat["input_ids"]])).logits[0, :-1] for chat in CHATS]).detach()
    assert found == pytest.approx(Categorical(logits=logits).entropy().mean().item(), rel=1e-6)


@dataclass(frozen=True, kw_only=True)
class FirstToken(CompletionLoss):
    """A loss of one's own that weighs tokens: the first loss token counts three times, and no other one."""

    token_gradients = True

    def __call__(self, scores: TokenScores) -> tuple[torch.Tensor, int]:
        return -3 * scores.logps[0], 3


def test_a_loss_of_ones_own_may_weigh_tokens(tiny_model: Path) -> None:
    """3 times log p of the first of 3 loss tokens has 3 times the gradient of NLL where that is the only one."""
    found = []
    for loss, spans, factor in ((FirstToken(), [1, 4], 1), (NLL(), [1, 2], 3)):
        module = SFTModule(str(tiny_model), loss=loss)
        module.configure_model()
        module.double()  # only the head computes in fp32
        loss_sum, _ = module.step(batch_of([CHATS[1] | {"spans": spans}]), "train")
        (factor * loss_sum).backward()
        found.append({name: parameter.grad for name, parameter in module.policy.named_parameters()})
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


def test_configure_model_twice_keeps_the_policy(tiny_model: Path) -> None:
    """fit, then validate: Lightning calls it again."""
    module = SFTModule(str(tiny_model))
    module.configure_model()
    policy = module.policy
    module.configure_model()
    assert module.policy is policy


# case: metrics-03, metrics-06
def test_validation_loss_does_not_depend_on_the_batch_size(tiny_model: Path, tmp_path: Path) -> None:
    """Chats with 1, 3, 5, 7 and 9 loss tokens, in batches of 1, 2, 3 and 5: sum NLL / 25 by transformers."""
    counts = [len(chat["input_ids"]) - 1 for chat in CHATS]
    expected = sum(plain_nll(tiny_model, chat).item() * n for chat, n in zip(CHATS, counts, strict=True)) / 25
    for size in (1, 2, 3, 5):
        found = trainer(tmp_path).validate(SFTModule(str(tiny_model)), loader(size), verbose=False)[0]
        assert found["val/loss"] == pytest.approx(expected, rel=1e-6)


def test_the_loss_falls(tiny_model: Path, tmp_path: Path) -> None:
    """10 steps on 5 chats: validation loss after is below the one before."""
    module = SFTModule(str(tiny_model), learning_rate=0.01)
    before = trainer(tmp_path).validate(module, loader(5), verbose=False)[0]["val/loss"]
    trainer(tmp_path, max_epochs=10).fit(module, loader(5))
    assert trainer(tmp_path).validate(module, loader(5), verbose=False)[0]["val/loss"] < before - 0.5


# case: precision-02
def test_the_default_precision_remembers_small_updates(tiny_model: Path, tmp_path: Path) -> None:
    """w = 1, gradient 1, 100 AdamW steps of 1e-5: 0.9990 in fp32, and 1.0 for ever in bf16; ours is fp32."""
    moved = {}
    for dtype in (torch.float32, torch.bfloat16):
        weight = torch.nn.Parameter(torch.ones(1, dtype=dtype))
        optimizer = AdamW([weight], lr=1e-5, weight_decay=0.0)
        for _ in range(100):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
        moved[dtype] = weight.item()
    assert moved[torch.float32] == pytest.approx(0.999, abs=1e-5)
    assert moved[torch.bfloat16] == 1.0
    AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16).save_pretrained(tmp_path / "bf16")
    module = SFTModule(str(tmp_path / "bf16"), learning_rate=1e-5)
    for precision in ("32-true", "bf16-mixed"):
        trainer(tmp_path, precision=precision).fit(module, loader(5))
        assert {parameter.dtype for parameter in module.policy.parameters()} == {torch.float32}


# case: precision-04
@pytest.mark.parametrize(
    ("precision", "dtype"), [("32-true", torch.float32), ("bf16-mixed", torch.float32), ("bf16-true", torch.bfloat16)]
)
def test_only_true_precisions_change_the_weights(
    tiny_model: Path, tmp_path: Path, precision: Any, dtype: torch.dtype
) -> None:
    """Mixed precisions keep fp32 masters."""
    module = SFTModule(str(tiny_model))
    trainer(tmp_path, precision=precision).validate(module, loader(5), verbose=False)
    assert {parameter.dtype for parameter in module.policy.parameters()} == {dtype}


# case: precision-04
def test_fp16_weights_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    """16-true loses small updates."""
    with pytest.raises(ValueError, match=r"16-true.*Use 16-mixed or bf16-true"):
        trainer(tmp_path, precision="16-true").fit(SFTModule(str(tiny_model)), loader(5))


# case: precision-04, precision-05
@pytest.mark.parametrize(("fused", "scaled"), [(True, True), (True, False), (False, True)])
def test_a_fused_optimizer_is_refused_with_a_scaler(
    tiny_model: Path, tmp_path: Path, fused: bool, scaled: bool
) -> None:
    """It would unscale inside the step, after clipping; without a scaler (bf16-mixed) it is fine. 16-mixed keeps fp32
    masters: its GradScaler can't unscale fp16 gradients."""
    module = SFTModule(str(tiny_model), optimizer=lambda params: AdamW(params, fused=fused))
    precision = MixedPrecision("16-mixed", "cpu", GradScaler("cpu")) if scaled else MixedPrecision("bf16-mixed", "cpu")
    runner = trainer(tmp_path, plugins=[precision])
    if fused and scaled:
        with pytest.raises(ValueError, match="Set `fused: false`, or use bf16-mixed"):
            runner.fit(module, loader(5))
    else:
        runner.fit(module, loader(5))
        assert {parameter.dtype for parameter in module.policy.parameters()} == {torch.float32}


def test_bf16_true_counts_in_fp64_and_stays_near_fp32(tiny_model: Path, tmp_path: Path) -> None:
    """bf16 weights: validation loss within 1 % of fp32's, and metrics' sums stay fp64."""
    found = {}
    for precision in ("32-true", "bf16-true"):
        module = SFTModule(str(tiny_model))
        found[precision] = trainer(tmp_path, precision=precision).validate(module, loader(2), verbose=False)[0][
            "val/loss"
        ]
    assert next(module.policy.parameters()).dtype == torch.bfloat16
    assert module.metrics_of("val")["loss"].total.dtype == torch.float64
    assert found["bf16-true"] == pytest.approx(found["32-true"], rel=0.01)


# case: checkpoint-08
def test_hyperparameters_are_plain_and_small(tiny_model: Path, tmp_path: Path) -> None:
    """JSON, below 100 kB, without the optimizer; the module can be made again from the checkpoint."""
    module = SFTModule(str(tiny_model), optimizer=lambda params: SGD(params), chunk_size=7)
    runner = trainer(tmp_path)
    runner.fit(module, loader(5))
    runner.save_checkpoint(tmp_path / "made.ckpt")
    kept = torch.load(tmp_path / "made.ckpt", weights_only=True)
    text = json.dumps(dict(kept["hyper_parameters"]))
    assert len(text) < 100_000
    assert "optimizer" not in kept["hyper_parameters"]
    assert len(kept["state_dict"]) == 21  # 20 parameters, and the tied head's second name
    again = SFTModule.load_from_checkpoint(tmp_path / "made.ckpt")
    assert again.chunk_size == 7
    for one, other in zip(again.policy.parameters(), module.policy.parameters(), strict=True):
        assert torch.equal(one, other)


def test_one_learning_rate(tiny_model: Path) -> None:
    """An optimizer with its own lr is two settings of one thing; its default is not."""
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = AdamW([weight])
    set_learning_rate(optimizer, 0.5)
    assert optimizer.param_groups[0]["lr"] == 0.5
    with pytest.raises(ValueError, match=r"set only `model.learning_rate`"):
        set_learning_rate(AdamW([weight], lr=0.1), 0.5)
    with pytest.raises(ValueError, match=r"it makes its own: set its `lr` to `model.learning_rate`, 0.5"):
        set_learning_rate(Adafactor([weight]), 0.5)


# ---- named validation sets


class NamedSets(LightningDataModule):
    """A training loader, and a validation loader for each named set."""

    def __init__(self, **sets: DataLoader[Batch]) -> None:
        super().__init__()
        self.sets, self.val_names = list(sets.values()), tuple(sets)
        self.vocabulary_size, self.add_tokens = 0, False

    def stop_ids(self) -> list[int]:
        return []

    def train_dataloader(self) -> DataLoader[Batch]:
        return loader(5)

    def val_dataloader(self) -> list[DataLoader[Batch]]:
        return self.sets


def test_named_sets_have_their_own_metrics_and_one_of_all_their_tokens(tiny_model: Path, tmp_path: Path) -> None:
    """Set a: 3 chats with 1 + 3 + 5 loss tokens in batches of 2 and 1; set b: 1 chat with 9. Means of 9, 9 and all 18
    loss tokens of plain transformers; perplexities are exp of these, not means of perplexities."""
    counts = [1, 3, 5, 9]
    losses = [plain_nll(tiny_model, chat).item() for chat in (*CHATS[:3], CHATS[4])]
    sums = [loss * count for loss, count in zip(losses, counts, strict=True)]
    sets = NamedSets(a=loader(2, CHATS[:3]), b=loader(1, CHATS[4:]))
    found: dict[str, float] = {}
    for result in trainer(tmp_path).validate(SFTModule(str(tiny_model)), datamodule=sets, verbose=False):
        found |= result
    expected = {"val/a/loss": sum(sums[:3]) / 9, "val/b/loss": sums[3] / 9, "val/loss": sum(sums) / 18}
    for name, loss in expected.items():
        assert found[name] == pytest.approx(loss, rel=1e-6), name
        assert found[name.replace("loss", "perplexity")] == pytest.approx(math.exp(loss), rel=1e-5)
    assert set(found) - {"step"} == {
        f"val/{s}{m}" for s in ("", "a/", "b/") for m in ("loss", "perplexity", "token_accuracy", "entropy")
    }


def test_sets_of_unequal_size_weigh_by_their_tokens_in_every_validation(tiny_model: Path, tmp_path: Path) -> None:
    """Sets of 1 and 9 + 7 loss tokens, over 2 epochs: each validation counts afresh, and `val/loss` is
    (1 a + 16 b) / 17."""
    logged: list[dict[str, float]] = []

    class Watched(SFTModule):
        def report(self, named: dict[str, Any]) -> None:
            logged.append({name: float(value) for name, value in named.items()})

    sets = NamedSets(small=loader(1, CHATS[:1]), large=loader(1, CHATS[3:]))
    trainer(tmp_path, max_epochs=2).fit(Watched(str(tiny_model), learning_rate=0.01), datamodule=sets)
    validations = [named for named in logged if "val/loss" in named]
    assert len(validations) == 2
    for named in validations:
        mean = (named["val/small/loss"] + 16 * named["val/large/loss"]) / 17
        assert named["val/loss"] == pytest.approx(mean, rel=1e-6)
    assert validations[1]["val/large/loss"] < validations[0]["val/large/loss"]
    assert validations[0]["val/small/loss"] != pytest.approx(validations[0]["val/large/loss"], rel=1e-3)
