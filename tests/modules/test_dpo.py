"""DPOModule: the loss, and a reference that stays what it was."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, AdamW
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM

from smollit.batch import Batch
from smollit.data.batching.collate import collate_pairs
from smollit.losses import CPO, DPO, IPO, ORPO, Hinge, PreferenceLoss, SimPO
from smollit.models.adapters import LoRA
from smollit.models.pretrained import weights_fingerprint
from smollit.modules import DPOModule
from smollit.training import SmollitTrainer
from tests.conftest import QUIET, batch_of, edited, example_pairs
from tests.models.families import save_family

LOG_TWO = math.log(2)
PAIRS = example_pairs(4)


def trainer(folder: Path, **options: Any) -> SmollitTrainer:
    return SmollitTrainer(str(folder), **{"max_epochs": 1, "log_every_n_steps": 1, **QUIET, **options})


def loader(size: int = 2) -> DataLoader[Batch]:
    batches = [batch_of(PAIRS[start : start + size]) for start in range(0, len(PAIRS), size)]
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


def ready(folder: Path, **options: Any) -> DPOModule:
    module = DPOModule(str(folder), **options)
    module.configure_model()
    return module


def copies(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """To the bit."""
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


class Watched(DPOModule):
    """Notes each micro-batch's mean loss and whether the reference is in train mode."""

    def __init__(self, model_name: str, **options: Any) -> None:
        super().__init__(model_name, **options)
        self.losses_seen: list[float] = []
        self.modes_seen: list[bool] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.losses_seen.append(loss.item() / batch.num_examples)
        self.modes_seen += [part.training for part in self.reference.modules()]
        assert all(part.training for part in self.policy.modules())
        return loss


@pytest.fixture
def with_dropout(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model with attention dropout 0.1 in its config.json."""
    return edited(tiny_model, tmp_path / "model", attention_dropout=0.1)


# promise: log-two
# case: dpo-loss-01, dpo-loss-04
def test_the_first_loss_is_log_two_and_the_reference_never_trains(with_dropout: Path, tmp_path: Path) -> None:
    """Dropout 0.1 in the config, 2 epochs with validation, then 1 more after a resume: margins 0 at step 0 to 1e-6,
    and every module of the reference in eval mode in every step."""
    module = Watched(str(with_dropout), learning_rate=0.01)
    runner = trainer(tmp_path, max_epochs=2, enable_checkpointing=True)
    runner.fit(module, loader(), loader())
    assert module.losses_seen[0] == pytest.approx(LOG_TWO, abs=1e-6)
    assert module.losses_seen[2] < LOG_TWO - 0.01  # the same pairs, an epoch later
    again = Watched(str(with_dropout), learning_rate=0.01)
    trainer(tmp_path, max_epochs=3).fit(
        again, loader(), loader(), ckpt_path=str(runner.checkpoint_folder / "last.ckpt")
    )
    assert len(again.losses_seen) == 2
    assert not any(module.modes_seen + again.modes_seen)


# case: dpo-loss-04
def test_dropout_in_the_policy_must_be_asked_for(with_dropout: Path) -> None:
    """dropout null keeps the model's 0.1, whose noise moves the first loss; the default 0 does not."""
    batch = batch_of(PAIRS)
    for dropout, is_log_two in ((0.0, True), (None, False)):
        module = ready(with_dropout, dropout=dropout)
        loss = module.step(batch, "train")[0] / 4
        assert (abs(loss.item() - LOG_TWO) < 1e-6) is is_log_two


# case: dpo-loss-04
@pytest.mark.parametrize("family", ["GPT-2", "OPT", "StableLM"])
def test_every_dropout_of_a_family_is_off(family: str, tmp_path: Path) -> None:
    """GPT-2 has `resid_pdrop`, OPT `dropout`, StableLM `hidden_dropout`: the first loss is log 2 all the same."""
    names = {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1, "dropout": 0.1, "hidden_dropout": 0.1}
    folder = edited(save_family(family, tmp_path / "model"), tmp_path / "edited", **names)
    for dropout, is_log_two in ((0.0, True), (None, False), (0.3, False)):
        loss = ready(folder, dropout=dropout).step(batch_of(PAIRS), "train")[0] / 4
        assert (abs(loss.item() - LOG_TWO) < 1e-5) is is_log_two


def test_a_dropout_that_a_family_does_not_have_is_refused(tmp_path: Path) -> None:
    """Mamba has none."""
    with pytest.raises(ValueError, match=r"`model.dropout` is 0.1, and models of the type mamba have no dropout"):
        ready(save_family("Mamba", tmp_path / "model"), dropout=0.1)


# case: dpo-loss-07
def test_the_reference_is_neither_optimized_nor_changed(tiny_model: Path, tmp_path: Path) -> None:
    """AdamW with weight decay 0.1, 2 epochs: 20 parameters in the optimizer, not 40; the reference's weights stay, the
    policy's do not; they share no storage; calling train() on the module leaves the reference in eval mode."""
    module = DPOModule(str(tiny_model), optimizer=lambda params: AdamW(params, weight_decay=0.1), learning_rate=0.01)
    module.configure_model()
    before = copies(module.reference)
    assert_equal(copies(module.policy), before)
    runner = trainer(tmp_path, max_epochs=2)
    runner.fit(module, loader())
    held = [parameter for group in runner.optimizers[0].param_groups for parameter in group["params"]]
    assert {id(parameter) for parameter in held} == {id(parameter) for parameter in module.policy.parameters()}
    assert len(held) == 20
    assert_equal(copies(module.reference), before)
    assert not torch.equal(copies(module.policy)["model.model.norm.weight"], before["model.model.norm.weight"])
    policy, reference = ({p.data_ptr() for p in model.parameters()} for model in (module.policy, module.reference))
    assert not policy & reference
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in module.reference.parameters())
    module.train()
    assert not any(part.training for part in module.reference.modules())


# case: checkpoint-02
@pytest.mark.slow
def test_checkpoints_hold_the_policy_alone_and_resume_with_the_original(tiny_model: Path, tmp_path: Path) -> None:
    """21 keys, not 42; the third epoch after a resume has the losses of the unbroken run; the reference is the
    original, not the trained policy."""
    options: dict[str, Any] = {"learning_rate": 0.01, "schedule": "constant", "loss": DPO(beta=0.2)}
    unbroken = Watched(str(tiny_model), **options)
    trainer(tmp_path / "a", max_epochs=3).fit(unbroken, loader())
    first = Watched(str(tiny_model), **options)
    runner = trainer(tmp_path / "b", max_epochs=2, enable_checkpointing=True)
    runner.fit(first, loader())
    path = runner.checkpoint_folder / "last.ckpt"
    kept = torch.load(path, weights_only=True)
    assert len(kept["state_dict"]) == 21
    assert not any("reference" in name or "scorer" in name for name in kept["state_dict"])
    assert len(json.dumps(dict(kept["hyper_parameters"]))) < 100_000
    assert DPOModule.load_from_checkpoint(path).loss == DPO(beta=0.2)
    second = Watched(str(tiny_model), **options)
    trainer(tmp_path / "b", max_epochs=3).fit(second, loader(), ckpt_path=str(path))
    assert second.losses_seen == unbroken.losses_seen[4:]
    assert kept["reference"] == {"source": str(tiny_model), "fingerprint": weights_fingerprint(str(tiny_model))}
    assert_equal(copies(second.reference), copies(ready(tiny_model).policy))
    del kept["state_dict"]["policy.model.model.norm.weight"]
    torch.save(kept, tmp_path / "b" / "less.ckpt")
    with pytest.raises(RuntimeError, match=r"Missing key.*norm.weight"):
        trainer(tmp_path / "b", max_epochs=3).fit(
            Watched(str(tiny_model)), loader(), ckpt_path=str(tmp_path / "b" / "less.ckpt")
        )


def test_a_new_run_can_start_from_a_checkpoints_weights(tiny_model: Path, tmp_path: Path) -> None:
    """init_from: the policy has the trained weights, the reference the original ones."""
    module = DPOModule(str(tiny_model), learning_rate=0.01)
    runner = trainer(tmp_path, enable_checkpointing=True)
    runner.fit(module, loader())
    start = ready(tiny_model, init_from=str(runner.checkpoint_folder / "last.ckpt"))
    assert_equal(copies(start.policy), copies(module.policy))
    assert_equal(copies(start.reference), copies(module.reference))
    trained, original = (copies(model)["model.model.norm.weight"] for model in (start.policy, start.reference))
    assert not torch.equal(trained, original)


def test_a_new_run_does_not_start_from_another_models_weights(tiny_model: Path, tmp_path: Path) -> None:
    """init_from: an embedding of 16 does not fit a model of 32; the sentence names the file and the model."""
    torch.save({"state_dict": {"policy.model.model.embed_tokens.weight": torch.zeros(2048, 16)}}, tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match=r"x\.ckpt was not made from `model.model_name`"):
        ready(tiny_model, init_from=str(tmp_path / "x.ckpt"))


def test_policy_and_reference_may_be_two_models(tiny_model: Path, tmp_path: Path) -> None:
    """reference_name: other weights, so the first margins are not 0."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    with torch.no_grad():
        model.model.norm.weight.mul_(2)
    model.save_pretrained(tmp_path)
    module = ready(tiny_model, reference_name=str(tmp_path))
    assert module.scorer.state["source"] == str(tmp_path)
    assert abs(module.step(batch_of(PAIRS), "train")[0].item() / 4 - LOG_TWO) > 1e-4


# case: dpo-loss-01
def test_validation_before_training_shows_a_policy_that_knows_nothing(tiny_model: Path, tmp_path: Path) -> None:
    """Policy = reference: loss ln 2, margins 0, accuracy 1/2; after 3 epochs of training all have moved."""
    module = DPOModule(str(tiny_model), learning_rate=0.01)
    found = trainer(tmp_path).validate(module, loader(), verbose=False)[0]
    assert found["val/loss"] == pytest.approx(LOG_TWO, abs=1e-6)
    assert (found["val/rewards/margins"], found["val/rewards/accuracies"]) == (0.0, 0.5)
    trainer(tmp_path, max_epochs=3).fit(module, loader())
    found = trainer(tmp_path).validate(module, loader(), verbose=False)[0]
    assert found["val/loss"] < LOG_TWO - 0.05
    assert found["val/rewards/margins"] > 0.05
    assert found["val/rewards/accuracies"] == 1.0


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_the_first_loss_is_log_two_in_bf16(tiny_model: Path, tmp_path: Path, precision: str) -> None:
    """Lightning casts the policy and does not know the reference: both must round alike."""
    module = Watched(str(tiny_model))
    trainer(tmp_path, precision=precision).fit(module, loader())
    assert module.losses_seen[0] == pytest.approx(LOG_TWO, abs=1e-6)


# ---- the loss


def moved(folder: Path, **options: Any) -> DPOModule:
    """A module whose policy has left its reference."""
    module = ready(folder, **options)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.policy.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return module


def plain_log_ratios(module: DPOModule) -> tuple[Tensor, Tensor, Tensor]:
    """Chosen and rejected log-ratios, and log p(chosen), of the 4 pairs: one row each, from all logits."""
    found = []
    for model in (module.policy.model, module.reference.model):
        scores = []
        for pair in PAIRS:
            for name in ("chosen_ids", "rejected_ids"):
                prompt, response = pair["prompt_ids"], pair[name]
                logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
                scores.append(torch.log_softmax(logits, 1).gather(1, torch.tensor(response)[:, None]).sum())
        found.append(torch.stack(scores).view(4, 2))
    ratios = found[0] - found[1].detach()
    return ratios[:, 0], ratios[:, 1], found[0][:, 0]


# case: dpo-loss-10, dpo-loss-11, dpo-loss-16
@pytest.mark.parametrize(
    "loss", [DPO(), DPO(beta=0.5, label_smoothing=0.1), IPO(), Hinge(), DPO(nll_weight=1.0), IPO(nll_weight=0.3)]
)
def test_each_loss_arrives_in_the_step(tiny_model: Path, loss: PreferenceLoss) -> None:
    """Value and gradient against the papers' formulas on plain transformers' log-probabilities; IPO divides by the
    tokens of each response (2, 3, 4, 2 and 2); nll_weight adds the chosen response's mean -log p per token."""
    module = moved(tiny_model, loss=loss)
    batch = batch_of(PAIRS)
    chosen, rejected, logps = plain_log_ratios(module)
    num_chosen = torch.tensor([2, 3, 4, 2])
    margin = loss.beta * (chosen - rejected)
    smoothing = loss.label_smoothing if isinstance(loss, DPO) else 0.0
    expected = {
        DPO: -(1 - smoothing) * F.logsigmoid(margin) - smoothing * F.logsigmoid(-margin),
        Hinge: (1 - margin).clamp(min=0),
        IPO: (chosen / num_chosen - rejected / 2 - 1 / (2 * loss.beta)) ** 2,
    }[type(loss)] - loss.nll_weight * logps / num_chosen
    expected.sum().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in module.policy.named_parameters()}
    module.policy.zero_grad()
    loss_sum, count = module.step(batch, "train")
    loss_sum.backward()
    assert count == 4
    torch.testing.assert_close(loss_sum, expected.sum(), rtol=1e-5, atol=1e-6)
    for name, parameter in module.policy.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", [SimPO(), CPO(), ORPO()])
def test_without_a_reference_no_second_model_is_loaded(tiny_model: Path, tmp_path: Path, loss: PreferenceLoss) -> None:
    """The loss of the policy's own log-probabilities; a reference that is named would have no effect."""
    module = ready(tiny_model, loss=loss)
    assert not module.scorer.has_model
    found, _ = module.step(batch_of(PAIRS), "train")
    policy = module.policy(batch_of(PAIRS), mean_logits=True)
    expected = loss(policy.per_pair(reference=torch.zeros(8)))[0]
    torch.testing.assert_close(found, expected.sum())
    trainer(tmp_path).fit(module, loader(4))
    with pytest.raises(ValueError, match="which has no reference: leave out"):
        DPOModule(str(tiny_model), loss=loss, reference="precomputed")


# case: metrics-08
def test_the_dashboard_has_the_rewards_of_its_pairs(tiny_model: Path, tmp_path: Path) -> None:
    """Means over 4 pairs, in batches of 3 and 1, of beta x the plain log-ratios; accuracy, margin and logps alike."""
    module = moved(tiny_model)
    chosen, rejected, logps = (tensor.detach() for tensor in plain_log_ratios(module))
    found = trainer(tmp_path).validate(module, loader(3), verbose=False)[0]
    expected = {
        "val/rewards/chosen": 0.1 * chosen.mean(),
        "val/rewards/rejected": 0.1 * rejected.mean(),
        "val/rewards/margins": 0.1 * (chosen - rejected).mean(),
        "val/rewards/accuracies": (chosen > rejected).float().mean(),
        "val/logps/chosen": logps.mean(),
        "val/loss": F.softplus(-0.1 * (chosen - rejected)).mean(),
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value.item(), rel=1e-4, abs=1e-6), name


# case: dpo-loss-01
def test_one_step_lowers_the_loss_of_its_pairs(tiny_model: Path, tmp_path: Path) -> None:
    """Plain SGD, lr 0.1: below ln 2 on the same batch."""
    module = DPOModule(str(tiny_model), optimizer=lambda params: SGD(params), learning_rate=0.1, schedule="constant")
    trainer(tmp_path).fit(module, loader(4))
    assert module.step(batch_of(PAIRS), "val")[0].item() / 4 < LOG_TWO - 1e-4


# case: mask-02
def test_an_empty_batch_costs_nothing_with_a_graph(tiny_model: Path, tmp_path: Path) -> None:
    """The batch that keeps ranks in step: loss 0, count 0, gradients 0, no metric."""
    module = ready(tiny_model)
    loss_sum, count = module.step(collate_pairs([]), "val")
    loss_sum.backward()
    assert (loss_sum.item(), count) == (0.0, 0)
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in module.policy.parameters())
    assert all(metric.count == 0 for metric in module.metrics_of("val").values())


# case: dpo-loss-16
def test_the_default_learning_rate_is_small() -> None:
    """Rewards of chosen responses sink at 5e-5; the default is 5e-6 at most, beta 0.1."""
    module = DPOModule("anything")
    assert module.learning_rate <= 5e-6
    assert module.loss == DPO(beta=0.1)


# ---- scores


def scored(gaps: list[float]) -> list[dict[str, Any]]:
    return [pair | {"score_gap": gap} for pair, gap in zip(PAIRS, gaps, strict=True)]


def test_an_offset_asks_for_a_margin_of_the_scores(tiny_model: Path) -> None:
    """Gaps 0, 0.5, 1 and 3 at scale 0.2: -log sigmoid(0.1 margin - 0.2 gap), value and gradient."""
    gaps = [0.0, 0.5, 1.0, 3.0]
    module = moved(tiny_model, loss=DPO(scores="offset", score_scale=0.2))
    chosen, rejected, _ = plain_log_ratios(module)
    expected = -F.logsigmoid(0.1 * (chosen - rejected) - 0.2 * torch.tensor(gaps)).sum()
    expected.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in module.policy.named_parameters()}
    module.policy.zero_grad()
    loss_sum, count = module.step(collate_pairs([scored(gaps)]), "train")
    loss_sum.backward()
    assert count == 4
    torch.testing.assert_close(loss_sum, expected, rtol=1e-5, atol=1e-6)
    for name, parameter in module.policy.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sizes", [[4], [1, 1, 1, 1], [1, 3], [3, 1]])
def test_weights_make_a_weighted_mean_over_the_window(tiny_model: Path, tmp_path: Path, sizes: list[int]) -> None:
    """Gaps 1, 0, 2 and 5, in any split of 4 pairs into micro-batches: one SGD step down the gradient of
    sum(gap x loss) / 8. A gap of 0 counts nothing, also when it is alone in its micro-batch; the scale cancels out."""
    gaps = [1.0, 0.0, 2.0, 5.0]
    module = moved(tiny_model)
    chosen, rejected, _ = plain_log_ratios(module)
    (-(torch.tensor(gaps) * F.logsigmoid(0.1 * (chosen - rejected))).sum() / 8).backward()
    expected = {
        name: (parameter - 0.1 * parameter.grad).detach() for name, parameter in module.policy.named_parameters()
    }
    pairs, starts = scored(gaps), [sum(sizes[:index]) for index in range(len(sizes))]
    batches = [collate_pairs([pairs[start : start + size]]) for start, size in zip(starts, sizes, strict=True)]
    for scale in (1.0, 3.0):
        options = {"learning_rate": 0.1, "schedule": "constant", "loss": DPO(scores="weight", score_scale=scale)}
        module = moved(tiny_model, optimizer=lambda params: SGD(params), **options)
        loader = DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
        trainer(tmp_path, accumulate_grad_batches=len(sizes)).fit(module, loader)
        for name, parameter in module.policy.named_parameters():
            torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("names", [{"model_name": "./gone"}, {"reference_name": "./gone"}])
def test_a_missing_folder_is_named_by_its_setting(names: dict[str, str], make_run: Any) -> None:
    """Policy and reference come from two settings."""
    with pytest.raises(ValueError, match=f"`{next(iter(names))}` is the folder ./gone, which does not exist"):
        make_run(kind="dpo", model=names, max_steps=1).fit()


@pytest.mark.parametrize("adapter", [None, LoRA(r=2)], ids=["whole", "adapter"])
def test_models_are_loaded_into_cpu_memory_whatever_the_default_device_is(
    tiny_model: Path, adapter: LoRA | None
) -> None:
    """Lightning calls configure_model with the run's GPU as the default device; here `meta`, whose tensors hold
    nothing. The random weights of LoRA are the same in any run too."""
    found = []
    for device in ("cpu", "meta"):
        torch.manual_seed(0)
        module = DPOModule(str(tiny_model), adapter=adapter)
        with torch.device(device):
            module.configure_model()
        models = [module.policy, *([module.scorer.model] if module.scorer.has_model else [])]
        found.append(
            {f"{i} {name}": weight for i, model in enumerate(models) for name, weight in copies(model).items()}
        )
    assert_equal(*found)
