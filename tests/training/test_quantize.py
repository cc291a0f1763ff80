"""Frozen weights in 4 bits below an adapter: what they are, runs that resume and export them, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from smollit.commands.estimate.memory import fixed_parts
from smollit.commands.export.export import export
from smollit.models.adapters import LoRA, quantized_layers
from smollit.modules import DPOModule, SFTModule
from tests.conftest import batch_of, example_pairs
from tests.training.conftest import stop_and_resume

STEPS = {"max_epochs": None, "max_steps": 4, "accumulate_grad_batches": 1}
QLORA = {"adapter": LoRA(r=4), "quantize": "nf4", "dropout": 0.0}
LAYER = "model.layers.0.mlp.down_proj"
# Of https://arxiv.org/abs/2305.14314: the 16 numbers that a weight can be, times the largest of its 64.
NF4 = [-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0, 0.0795803, 0.1609302]
NF4 += [0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0]


def nearest(weight: torch.Tensor) -> torch.Tensor:
    """Each number by the nearest of NF4, by hand, in blocks of 64."""
    blocks = weight.reshape(-1, 64)
    scale = blocks.abs().amax(1, keepdim=True)
    codes = torch.tensor(NF4)
    return (codes[(blocks / scale)[..., None].sub(codes).abs().argmin(-1)] * scale).reshape(weight.shape)


@pytest.fixture
def wide_model(tiny_model: Path, tmp_path: Path) -> Path:
    """A random model with rows of 64 and 128 numbers, of one layer."""
    config = AutoConfig.from_pretrained(tiny_model)
    config.hidden_size, config.intermediate_size, config.head_dim, config.num_hidden_layers = 64, 128, 16, 1
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "wide")
    return tmp_path / "wide"


# promise: quantize
@pytest.mark.slow
@pytest.mark.parametrize(("kind", "quantize"), [("sft", "nf4"), ("dpo", "nf4"), ("sft", "nf4-dq")])
def test_a_run_on_weights_in_4_bits_resumes_and_is_exported(
    fit: Any, tmp_path: Path, wide_model: Path, tiny_model: Path, kind: str, quantize: str
) -> None:
    """The exported model is the nearest NF4 numbers of the base, by hand, plus the trained B A; its logits are those of
    the policy. With `nf4-dq` the scales are rounded to 8 bits: to 3 % of the largest weight. Validation computes as
    training does, and in DPO the policy without its adapter is the reference."""
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install 'smollit[qlora]'")
    options = {"model_name": str(wide_model), **QLORA, "quantize": quantize}
    whole, _ = stop_and_resume(fit, tmp_path, 2, kind=kind, model=options, **STEPS)
    policy = whole.module.policy
    saved = torch.load(tmp_path / "whole/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert all("lora" in name for name in saved)
    template = whole.trainer.datamodule.template
    export(policy, str(wide_model), template=template, output=tmp_path / "out", dtype="float32", adapter=LoRA(r=4))
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    base = AutoModelForCausalLM.from_pretrained(wide_model).state_dict()
    a, b = (saved[f"policy.model.{LAYER}.lora_{part}.default.weight"] for part in "AB")
    expected = nearest(base[f"{LAYER}.weight"].bfloat16().float()) + 32 / 4 * b @ a  # alpha / r
    error = (exported.get_submodule(LAYER).weight - expected).abs().max().item()
    assert error < 1e-5 if quantize == "nf4" else 0 < error < 0.03 * base[f"{LAYER}.weight"].abs().max().item()
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(exported(ids).logits, policy.eval().model(ids).logits, rtol=1e-4, atol=1e-4)
    trained = policy.train().model(ids).logits
    torch.testing.assert_close(trained, exported(ids).logits, rtol=1e-4, atol=1e-4)
    assert trained.requires_grad  # after an evaluation
    loaded = type(whole.module).load_from_checkpoint(tmp_path / "whole/checkpoints/last.ckpt")
    torch.testing.assert_close(loaded.policy.model(ids).logits, trained)
    if isinstance(loaded, DPOModule):
        start = DPOModule(str(wide_model), **QLORA)
        start.configure_model()
        batch = batch_of(example_pairs(2))
        assert torch.equal(start.policy(batch).sums, start.reference_logps(batch))
    narrow = SFTModule(str(tiny_model), **QLORA)  # rows of 32 but for one layer of each block
    narrow.configure_model()
    assert [len(quantized_layers(module.policy)) for module in (loaded, narrow)] == [7, 2]


# promise: quantize
@pytest.mark.slow
def test_an_adapter_of_weights_in_4_bits_is_exported_alone(
    fit: Any, tmp_path: Path, wide_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """peft puts it on the whole base: the weights of the base plus 8 B A, and the export says that they are others."""
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install 'smollit[qlora]'")
    run = fit(tmp_path / "run", model={"model_name": str(wide_model), **QLORA}, **STEPS)
    assert run.error is None
    export(
        run.module.policy,
        str(wide_model),
        template=run.trainer.datamodule.template,
        output=tmp_path / "out",
        adapter=LoRA(r=4),
        form="adapter",
    )
    assert "on the whole base model, it responds a little differently" in caplog.text
    base = AutoModelForCausalLM.from_pretrained(wide_model)
    whole = base.get_submodule(LAYER).weight.detach().clone()
    merged = PeftModel.from_pretrained(base, tmp_path / "out").merge_and_unload()
    saved = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    a, b = (saved[f"policy.model.{LAYER}.lora_{part}.default.weight"] for part in "AB")
    assert b.abs().max() > 0
    torch.testing.assert_close(merged.get_submodule(LAYER).weight, whole + 32 / 4 * b @ a)


@pytest.mark.slow
def test_weights_in_4_bits_train_compiled_and_take_the_memory_that_estimate_says(
    fit: Any, wide_model: Path, tmp_path: Path
) -> None:
    """Compiled layers give the same losses. A layer of n weights takes n / 2 bytes, and n / 64 scales of 4."""
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install 'smollit[qlora]'")
    losses = []
    for compile_model in (False, True):
        run = fit(
            tmp_path / str(compile_model),
            model={"model_name": str(wide_model), **QLORA, "compile": compile_model},
            **STEPS,
        )
        assert run.error is None
        losses.append(run.diary.losses)
    assert len(losses[0]) == 4
    torch.testing.assert_close(torch.tensor(losses[1]), torch.tensor(losses[0]), rtol=1e-5, atol=0)
    model = AutoModelForCausalLM.from_pretrained(wide_model)
    quantized = sum(layer.weight.numel() for layer in model.model.layers.modules() if isinstance(layer, nn.Linear))
    whole = sum(weight.numel() for weight in model.parameters()) - quantized
    lora = sum(weight.numel() for weight in run.module.policy.parameters() if weight.requires_grad)
    rotary = sum(buffer.nbytes for buffer in model.buffers())
    expected = 4 * whole + 4 * lora + rotary + quantized / 2 + quantized / 64 * 4
    assert fixed_parts(run.module)["weights"] == expected


def test_weights_in_4_bits_that_can_not_be_are_refused(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No adapter, another reference, no bitsandbytes."""
    with pytest.raises(ValueError, match=r"freezes the weights in 4 bits: set `model\.adapter` too"):
        SFTModule(str(tiny_model), quantize="nf4")
    with pytest.raises(ValueError, match="needs the policy without its adapter as the reference"):
        DPOModule(str(tiny_model), **QLORA, reference="offloaded")
    monkeypatch.setattr("smollit.models.adapters.four_bits.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs the package bitsandbytes: pip install 'smollit\[qlora\]'"):
        SFTModule(str(tiny_model), **QLORA).configure_model()
