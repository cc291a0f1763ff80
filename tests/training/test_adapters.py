"""Runs with an adapter: the reference without a second model, small checkpoints, resume to the bit, merging."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, inject_adapter_in_model
from peft.tuners.lora.layer import Linear
from torch import nn
from transformers import AutoModelForCausalLM

from smollit.commands.chat.speaker import Speaker
from smollit.commands.export.export import DTYPES, ExportDtype, export
from smollit.commands.verify import verify
from smollit.data import ChatDataModule
from smollit.data.template.template import load_template
from smollit.data.template.tokenize import load_tokenizer
from smollit.models.adapters import Adapter, DoRA, LoRA, Peft, RSLoRA, joined, merged, tuners
from smollit.modules import DPOModule, SFTModule
from smollit.python import export as python_export
from tests.conftest import batch_of, example_pairs
from tests.models.families import save_family
from tests.training.conftest import stop_and_resume

STEPS = {"max_epochs": None, "max_steps": 4, "accumulate_grad_batches": 1}
ADAPTERS = [LoRA(r=4), RSLoRA(r=4), DoRA(r=4), Peft(config="peft.IA3Config", options={"task_type": "CAUSAL_LM"})]


# promise: adapters
@pytest.mark.parametrize("adapter", [LoRA(r=4), LoRA(r=2, vocabulary=True)])
@pytest.mark.slow
def test_a_run_with_an_adapter_resumes_to_the_bit(fit: Any, tmp_path: Path, adapter: Adapter) -> None:
    """SFT, stopped at step 2. Only trained weights change, and only those are in the checkpoint."""
    whole, _ = stop_and_resume(fit, tmp_path, 2, model={"adapter": adapter}, **STEPS)
    start = SFTModule(whole.module.model_name).load(whole.module.model_name).state_dict()
    names = {name.replace(".base_layer", ""): name for name in whole.weights if "lora" not in name}
    changed = {name for name, ours in names.items() if not torch.equal(start[name], whole.weights[ours])}
    assert changed == ({"model.model.embed_tokens.weight", "model.lm_head.weight"} if adapter.vocabulary else set())
    saved = torch.load(tmp_path / "whole/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    trained = {name for name, weight in whole.module.named_parameters() if weight.requires_grad}
    assert set(saved) == trained and any("lora_A" in name for name in trained)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (LoRA(r=4), LoRA(r=2), "lacks 28 weights of `model.adapter`: .*lora_A.*give that of its start"),
        (LoRA(r=4), DoRA(r=4), "lacks 14 weights of `model.adapter`: .*magnitude"),
        (LoRA(r=4), None, "was made with the adapter .*LoRA.*, and `model.adapter` is null: give that of its start"),
        (None, LoRA(r=4), "lacks 28 weights of `model.adapter`"),
    ],
)
def test_a_run_does_not_resume_with_another_adapter(
    fit: Any, tmp_path: Path, before: Adapter | None, after: Adapter | None, words: str
) -> None:
    """Another rank, another kind, none, and one where there was none: a sentence, before torch's list of sizes."""
    options = STEPS | {"max_steps": 2}
    assert fit(tmp_path, model={"adapter": before}, **options).error is None
    error = fit(tmp_path, model={"adapter": after}, **STEPS).error
    assert isinstance(error, ValueError) and re.search(words, str(error)), error


# promise: adapters
def test_the_policy_without_its_adapter_is_the_reference(fit: Any, tmp_path: Path) -> None:
    """4 steps of DPO: the same losses and weights as with a frozen copy, without a second model in memory."""
    model = {"adapter": LoRA(r=4), "dropout": 0.1}
    ours = fit(tmp_path / "ours", kind="dpo", model=model, **STEPS)
    copy = fit(tmp_path / "copy", kind="dpo", model=model | {"reference": "offloaded"}, **STEPS)
    assert ours.error is None and not ours.module.scorer.has_model and copy.module.scorer.has_model
    assert ours.diary.losses == pytest.approx(copy.diary.losses, rel=1e-6)
    for name, value in ours.weights.items():
        torch.testing.assert_close(value, copy.weights[name], rtol=1e-6, atol=1e-7)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many layers each call of low_rank_linears computes."""
    compute, found = joined.low_rank_linears, []
    monkeypatch.setattr(joined, "low_rank_linears", lambda *args: found.append(len(args[1])) or compute(*args))
    return found


def test_layers_that_are_computed_together_are_pefts(tiny_model: Path, calls: list[int]) -> None:
    """Random adapter weights, in float64: log-probabilities and gradients with peft's own forward pass. A layer of
    Llama has four inputs: of q, k and v, of o, of gate and up, and of down."""
    module = DPOModule(str(tiny_model), adapter=LoRA(r=4))
    module.configure_model()
    module.policy.double()
    found = []
    for ours in (True, False):
        torch.manual_seed(0)
        for _, layer in tuners(module.policy):
            if not ours:
                del layer.forward
            nn.init.normal_(layer.lora_B["default"].weight)
        sums = module.policy(batch_of(example_pairs())).sums
        sums.sum().backward()
        gradients = {n: weight.grad for n, weight in module.policy.named_parameters() if weight.requires_grad}
        found.append({"sums": sums.detach(), **gradients})
        module.policy.zero_grad()
    assert calls == [3, 1, 2, 1] * module.policy.config.num_hidden_layers
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


class Siblings(nn.Module):
    """Two layers whose names say that they get the same input."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(4, 3), nn.Linear(4, 3)


def test_layers_that_do_not_get_the_same_input_are_computed_one_by_one(calls: list[int]) -> None:
    """Together once, and then, since the second layer's output was of another input, each by itself."""
    model = inject_adapter_in_model(LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False), Siblings())
    joined.join_layers(tuners(model), "default")
    x, y = torch.randn(2, 5, 4)
    for _ in range(2):
        torch.testing.assert_close(model.gate_proj(x), Linear.forward(model.gate_proj, x))
        torch.testing.assert_close(model.up_proj(y), Linear.forward(model.up_proj, y))
    assert calls == [2, 1, 1, 1]


def test_layers_are_computed_together_after_a_pass_that_an_error_ended(calls: list[int]) -> None:
    """The first layer alone: twice as after an error, and the third time as where the second is never called."""
    model = inject_adapter_in_model(LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False), Siblings())
    joined.join_layers(tuners(model), "default")
    for x in torch.randn(5, 2, 4):
        torch.testing.assert_close(model.gate_proj(x), Linear.forward(model.gate_proj, x))
    assert calls == [2, 2, 2, 1, 1]
    held = model.up_proj.forward.func.__self__
    held.outputs = {1: x}  # which a probe frees when it runs out of memory
    joined.forget_outputs(model)
    assert not held.outputs


# promise: adapters
@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: type(adapter).__name__)
def test_a_merged_adapter_gives_the_same_log_probabilities(tiny_model: Path, adapter: Adapter) -> None:
    """Random adapter weights: the model with its adapter, and the merged copy, which has the names of one without."""
    module = DPOModule(str(tiny_model), adapter=adapter)
    module.configure_model()
    batch, before = batch_of(example_pairs()), None
    for name, weight in module.policy.named_parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.05) if "magnitude" not in name else None
    with torch.no_grad():
        module.policy.eval()
        whole, without = module.policy(batch).sums, module.reference_logps(batch)
        copied = merged(module.policy)
        torch.testing.assert_close(copied(batch).sums, whole, rtol=1e-5, atol=1e-4)
        before = module.load(str(tiny_model)).eval()(batch).sums
    assert not tuners(copied) and not torch.allclose(whole, without, atol=1e-2)
    torch.testing.assert_close(without, before)


# promise: adapters
@pytest.mark.parametrize("family", ["Mixtral", "Qwen3-MoE", "DeepSeek-V3"])
def test_an_adapter_in_experts_is_merged(tmp_path: Path, family: str) -> None:
    """peft wraps the experts of a layer twice, once for each of their weights."""
    module = SFTModule(str(save_family(family, tmp_path)), adapter=LoRA(r=2))
    module.configure_model()
    ids = torch.arange(3, 40)[None]
    for _, weight in module.policy.named_parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.02)  # larger ones bring some token close to another choice of experts
    with torch.no_grad():
        model = module.policy.eval().model
        whole, copied = model(ids).logits, merged(model)
        torch.testing.assert_close(copied(ids).logits, whole, rtol=1e-5, atol=1e-5)
    for adapter in (DoRA(), LoRA(dropout=0.1)) if family != "DeepSeek-V3" else ():
        with pytest.raises(ValueError, match="holds experts: name other layers"):
            SFTModule(str(tmp_path), adapter=adapter).configure_model()
    assert set(copied.state_dict()) == set(SFTModule(str(tmp_path)).load(str(tmp_path)).model.state_dict())


def test_settings_that_can_not_work_are_refused(tiny_model: Path) -> None:
    """A rank of 0, a layer that is not there, an unknown configuration, and one that needs peft's own training."""
    with pytest.raises(ValueError, match=r"`model.adapter.r` must be at least 1, got 0"):
        LoRA(r=0)
    for adapter, words in [
        (LoRA(targets=["qkv"]), "`model.adapter` does not fit this model"),
        (Peft(config="peft.NoConfig"), "`model.adapter.config` peft.NoConfig can't be made"),
        (Peft(config="peft.AdaLoraConfig", options={"total_step": 9}), "AdaLoRA lowers its ranks after each step"),
    ]:
        with pytest.raises(ValueError, match=words):
            SFTModule(str(tiny_model), adapter=adapter).configure_model()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"modules_to_save": ["lm_head"]}, "would also train lm_head"),
        ({"trainable_token_indices": [3]}, "embed_tokens"),
        ({"target_modules": ["q_proj", "lm_head"]}, "can't be in lm_head"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "can't be in model.embed_tokens, which is the head or tied"),
        ({"init_lora_weights": "pissa_niter_4"}, "`init_lora_weights: pissa` changes the frozen weights too"),
        (
            {"lora_bias": True},
            "could not be merged into model.layers.*: Impossible to merge LoRA with `lora_bias=True`",
        ),
        ({"alora_invocation_tokens": [1, 5]}, "aLoRA does not support safe merging"),
        ({"alora_invocation_tokens": [1, 5], "quantize": "nf4"}, "aLoRA does not support safe merging"),
        ({"init_lora_weights": "eva"}, "`init_lora_weights: eva` is found in a pass over the data"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "`layer_replication` gives the model more layers"),
    ],
)
def test_what_a_merge_or_the_reference_would_lose_is_refused(
    tiny_model: Path, options: dict[str, Any], words: str
) -> None:
    """The head of the tiny model is tied: an adapter in one of both would be merged into both, and peft's copies of
    whole layers are neither merged nor left out of DPO's reference."""
    given = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj"], "r": 2} | options
    quantize = given.pop("quantize", None)
    made = {"quantize": quantize, "adapter": Peft(config="peft.LoraConfig", options=given)}
    with pytest.raises(ValueError, match=words):
        DPOModule(str(tiny_model), **made).configure_model()


# promise: adapters
@pytest.mark.slow
def test_an_adapter_is_exported_merged_or_alone_and_is_trained_on(fit: Any, tmp_path: Path, tiny_model: Path) -> None:
    """SFT with LoRA: the merged model, and base and adapter by peft, give the policy's logits. DPO starts from either
    with the same log-probabilities, and its reference without a second model is that start."""
    run = fit(tmp_path, model={"adapter": LoRA(r=4), "dropout": 0.0}, **STEPS)
    template = run.trainer.datamodule.template
    for form in ("model", "adapter"):
        export(run.module.policy, str(tiny_model), template=template, output=tmp_path / form, dtype="float32",
               adapter=run.module.adapter, form=form)  # fmt: skip
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        expected = run.module.policy.eval().model(ids).logits
        alone = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), tmp_path / "adapter")
        for model in (AutoModelForCausalLM.from_pretrained(tmp_path / "model"), alone):
            torch.testing.assert_close(model.eval()(ids).logits, expected, rtol=1e-5, atol=1e-5)
        for form in ("model", "adapter"):
            module = DPOModule(str(tmp_path / form), adapter=LoRA(r=2))
            module.configure_model()
            torch.testing.assert_close(module.policy.eval().model(ids).logits, expected, rtol=1e-5, atol=1e-5)
            batch = batch_of(example_pairs())
            torch.testing.assert_close(module.reference_logps(batch), module.policy(batch).sums)
    assert all(check.ok for form in ("model", "adapter") for check in verify(tmp_path / form))
    stops = Speaker.load(str(tmp_path / "adapter")).model.generation_config.eos_token_id
    assert set(template.stop_ids()) <= set(stops)
    with pytest.raises(ValueError, match="there is no adapter to export"):
        export(run.module.policy, str(tiny_model), template=template, output=tmp_path / "none", form="adapter")
    with pytest.raises(ValueError, match="is an adapter itself, which was merged before training"):
        export(module.policy, str(tmp_path / "adapter"), template=template, output=tmp_path / "none",
               adapter=module.adapter, form="adapter")  # fmt: skip


# promise: adapters
def test_a_merged_export_is_the_trained_model_or_refused(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OSF keeps parts of the base's weights that are in no state; a merge that loses the adapter leaves no folder."""
    options = {"target_modules": ["q_proj"], "effective_rank": 2}
    module = SFTModule(str(tiny_model), adapter=Peft(config="peft.OSFConfig", options=options))
    module.configure_model()
    for name, weight in module.policy.named_parameters():
        if name.endswith("S_low"):
            nn.init.normal_(weight, std=0.1)
    data, ids = ChatDataModule("rows", tokenizer_name=str(tiny_model)), torch.arange(3, 40)[None]
    with torch.no_grad():
        expected = module.policy.eval().model(ids).logits
        model = AutoModelForCausalLM.from_pretrained(python_export(module, data, tmp_path / "merged"))
        torch.testing.assert_close(model.eval()(ids).logits, expected, rtol=1e-5, atol=1e-5)
    monkeypatch.setattr("peft.tuners.osf.layer.Linear.merge", lambda layer, **options: None)
    with pytest.raises(RuntimeError, match=r"other logits than the trained one .*`--form adapter`"):
        python_export(module, data, tmp_path / "lost")
    assert not (tmp_path / "lost").exists()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_an_adapter_is_merged_into_half_precision(tiny_model: Path, tmp_path: Path, dtype: ExportDtype) -> None:
    """An adapter that is 0 yet: the weights are those of the base, rounded. Rotary frequencies stay exact."""
    module = SFTModule(str(tiny_model), adapter=LoRA(r=4))
    module.configure_model()
    template = load_template(load_tokenizer(str(tiny_model)), "auto")
    export(module.policy, str(tiny_model), template=template, output=tmp_path / "out", dtype=dtype, adapter=LoRA(r=4))
    found, expected = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[dtype]).state_dict()
        for folder in (tmp_path / "out", tiny_model)
    )
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


# promise: adapters
@pytest.mark.slow
def test_an_adapter_with_new_tokens_is_trained_on(make_run: Any, tiny_model: Path, tmp_path: Path) -> None:
    """Two tokens more than the base has: the adapter's folder is a model, and so for `chat` and `verify`."""
    tokenizer = load_tokenizer(str(tiny_model))
    tokenizer.add_tokens(["<one>", "<two>"])
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    options = {"tokenizer_name": str(tmp_path / "tokenizer"), "add_tokens": True}
    run = make_run([], model={"adapter": LoRA(r=2, vocabulary=True)}, data=options, max_steps=1).fit()
    folder = python_export(run.module, run.data, tmp_path / "adapter", form="adapter")
    ids = torch.tensor([[len(tokenizer) - 1, 5, 6]])
    with torch.no_grad():
        expected = run.module.policy.eval().model(ids).logits
        for model in (SFTModule(str(folder)).load(str(folder)).eval().model, Speaker.load(str(folder)).model):
            torch.testing.assert_close(model(ids).logits, expected, rtol=1e-5, atol=1e-5)
    assert all(check.ok for check in verify(folder))


# case: dpo-loss-01
def test_the_reference_starts_equal_to_the_bit(tiny_model: Path) -> None:
    """4 pairs: a frozen copy, and the policy without its adapter, give the policy's own log-probabilities."""
    batch = batch_of(example_pairs(4))
    for adapter in (None, LoRA(r=4)):
        module = DPOModule(str(tiny_model), adapter=adapter)
        module.configure_model()
        assert torch.equal(module.policy(batch).sums, module.reference_logps(batch))
