"""The Python door: docs/python.md and the notebook run, and models in memory are trained, resumed and exported."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM

from smollit.data import ChatDataModule
from smollit.data.template.tokenize import load_tokenizer
from smollit.models.adapters import Adapter, LoRA, Peft, RSLoRA
from smollit.modules import DPOModule, SFTModule
from smollit.python import chat, export
from smollit.training import SmollitTrainer
from tests.conftest import QUIET, ROOT, Run, batch_of, example_pairs

NAMES = re.compile(r"HuggingFaceTB/SmolLM2-135M(-Instruct)?")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMOLLIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def code_of_the_page() -> str:
    return "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.S))


def code_of_the_notebook() -> str:
    notebook = json.loads((ROOT / "examples" / "first_run.ipynb").read_text())
    assert all(not cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code")
    return "\n".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code")


# promise: python
@pytest.mark.parametrize("code", [code_of_the_page, code_of_the_notebook])
@pytest.mark.slow
def test_what_the_docs_show_runs(code: Callable[[], str], tiny_model: Path, tmp_path: Path) -> None:
    """As it stands, with the tiny model in place of SmolLM2: one export, and the curve."""
    names: dict[str, Any] = {}
    exec(compile(NAMES.sub(str(tiny_model), code()), "docs", "exec"), names)
    assert len(list(tmp_path.glob("runs/*/export/model.safetensors"))) == 1
    assert isinstance(names["module"], SFTModule) and names["module"].policy is not None
    if "losses" in names:
        assert [step for step, _ in names["losses"]] == [4, 8, 12, 16]


def tiny(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder)


# promise: python
@pytest.mark.slow
def test_a_model_in_memory_is_the_model_of_its_folder(tiny_model: Path, make_run: Callable[..., Run]) -> None:
    """The same steps as from the folder, to the bit, with its tokenizer; the object stays; a second one with the same
    weights is the same folder; the checkpoint alone gives the module back, and the export is the policy."""
    model = tiny(tiny_model)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    runs = [
        make_run(model={"model_name": start}, data={"tokenizer_name": None}, folder=name, max_steps=2).fit()
        for name, start in (("object", model), ("folder", str(tiny_model)))
    ]
    ours, plain = (run.module.policy.state_dict() for run in runs)
    assert all(torch.equal(ours[name], weight) for name, weight in plain.items())
    assert all(torch.equal(model.state_dict()[name], weight) for name, weight in before.items())
    again = SFTModule(tiny(tiny_model))
    assert again.model_name == runs[0].module.model_name and Path(again.model_name).parent.name == "models"
    loaded = SFTModule.load_from_checkpoint(runs[0].folder / "checkpoints" / "last.ckpt")
    assert all(torch.equal(loaded.policy.state_dict()[name], weight) for name, weight in ours.items())
    export(runs[0].module, runs[0].data, "export")
    written = tiny(Path("export")).state_dict()
    assert all(torch.equal(written[name.removeprefix("model.")], weight) for name, weight in ours.items())
    export(SFTModule(again.model_name), runs[0].data, "second", ckpt_path=runs[0].folder / "checkpoints" / "last.ckpt")
    assert chat("export", "Hello!", temperature=0, max_new_tokens=5) == chat(
        "second", [{"role": "user", "content": "Hello!"}], temperature=0, max_new_tokens=5
    )


# promise: python
def test_a_peft_model_is_merged_and_trains_an_adapter_of_its_kind(tiny_model: Path) -> None:
    """A LoRA whose B is not 0: the reference is the merged model, and so is the policy, until its own adapter moves."""
    wrapped: PeftModel = get_peft_model(tiny(tiny_model), LoraConfig(r=3, lora_alpha=6, target_modules="all-linear"))
    for name, weight in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    module = DPOModule(wrapped)  # type: ignore[arg-type]  # the annotation is what a config can say
    assert isinstance(module.adapter, LoRA) and (module.adapter.r, module.adapter.alpha) == (3, 6.0)
    module.configure_model()
    batch = batch_of(example_pairs(2))
    tokens = batch.input_ids[:1, :4]
    merged = tiny(Path(module.model_name))
    with torch.no_grad():
        torch.testing.assert_close(merged(tokens).logits, wrapped.eval()(tokens).logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(module.policy(batch).sums, module.reference_logps(batch))
        assert not torch.allclose(merged(tokens).logits, tiny(tiny_model)(tokens).logits, atol=1e-2)
    frozen = wrapped.requires_grad_(False)
    assert DPOModule(frozen).adapter is None  # type: ignore[arg-type]


# promise: python
@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"use_rslora": True}, RSLoRA),
        ({"target_modules": r".*layers\.1.*q_proj"}, Peft),
        ({"layers_to_transform": [1], "rank_pattern": {"q_proj": 2}}, Peft),
        ({"target_modules": "all-linear", "exclude_modules": ["v_proj"]}, Peft),
    ],
)
def test_the_adapter_of_a_peft_model_has_all_of_its_options(
    tiny_model: Path, options: dict[str, Any], kind: type[Adapter]
) -> None:
    """The same weights are trained as peft would train."""
    config: dict[str, Any] = {"r": 4, "target_modules": ["q_proj", "v_proj"]} | options
    wrapped = get_peft_model(tiny(tiny_model), LoraConfig(**config))
    module = SFTModule(wrapped)  # type: ignore[arg-type]
    module.configure_model()
    theirs, ours = (
        sorted(weight.shape for weight in model.parameters() if weight.requires_grad)
        for model in (wrapped, module.policy)
    )
    assert ours == theirs and type(module.adapter) is kind


# promise: python
def test_a_copy_gets_its_tokenizer_once_a_name_tells_it(tiny_model: Path, make_run: Callable[..., Run]) -> None:
    """Weights that say nothing of their tokenizer are a sentence. After the same weights were given with a name, the
    copy in the cache, which is the same folder, has the tokenizer, and the first ones train."""
    nameless = tiny(tiny_model)
    nameless.name_or_path = nameless.config._name_or_path = ""
    options = {"model": {"model_name": nameless}, "data": {"tokenizer_name": None}, "max_steps": 1}
    with pytest.raises(ValueError, match=r"could not load the tokenizer .*`data\.tokenizer_name`"):
        make_run(folder="first", **options).fit()
    assert SFTModule(tiny(tiny_model)).model_name == SFTModule(nameless).model_name
    run = make_run(folder="second", **options).fit()
    assert run.data.vocabulary_size == tiny(tiny_model).config.vocab_size


def test_the_rows_of_one_model_are_not_used_for_another(tiny_model: Path, tmp_path: Path) -> None:
    """A data module takes the tokenizer of its first model, and serves a second one only if that has the same."""
    row = {"messages": [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}]}
    data = ChatDataModule([row] * 4, val_split=None, train_batch_size=2, max_length=48)
    same, other = (shutil.copytree(tiny_model, tmp_path / name) for name in ("same", "other"))
    template = other / "chat_template.jinja"
    template.write_text(template.read_text() + "{# another #}")
    for folder in (tiny_model, same):
        SmollitTrainer(str(tmp_path / "run"), max_steps=1, **QUIET).fit(SFTModule(str(folder)), datamodule=data)
    with pytest.raises(ValueError, match="must be a name or a folder, got a "):
        ChatDataModule([row], tokenizer_name=load_tokenizer(str(tiny_model)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="make a new data module for another model, or set `tokenizer_name`"):
        SmollitTrainer(str(tmp_path / "run"), max_steps=1, **QUIET).fit(SFTModule(str(other)), datamodule=data)


def test_what_can_not_be_meant_is_refused(tiny_model: Path) -> None:
    """Frozen layers, adapters that can't be trained, no model at all, no weights to export. A reference, and a model
    below an adapter, may be frozen."""
    partly: Any = tiny(tiny_model)
    partly.get_input_embeddings().requires_grad_(False)
    module = DPOModule(partly, adapter=LoRA(r=2), reference_name=partly)
    assert module.scorer.name == module.model_name and module.scorer.mode == "adapter"
    prompt = get_peft_model(tiny(tiny_model), PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"))
    changed = get_peft_model(tiny(tiny_model), LoraConfig(r=2, init_lora_weights="olora"))
    for wrong, words in [
        (partly, "has frozen weights"),
        (prompt, "PromptTuningConfig, which adds to the prompt"),
        (changed, "`init_lora_weights: olora` changes the frozen weights"),
        (3, "got a int"),
    ]:
        with pytest.raises(ValueError, match=words):
            SFTModule(wrong)  # type: ignore[arg-type]
    data = ChatDataModule("rows", tokenizer_name=str(tiny_model))
    with pytest.raises(ValueError, match="has no weights yet"):
        export(SFTModule(str(tiny_model)), data, "out")
