"""An export as others read it: transformers 4.57 in an environment of its own, its pipeline, peft and TRL."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from smollit.commands.export.export import export
from smollit.commands.export.other_readers import spell_config
from smollit.data.template.template import load_template
from smollit.models import CausalLM
from tests.conftest import ROOT, edited
from tests.readers.read import TRAINED, read

pytestmark = pytest.mark.readers
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8}
SIZES |= {"num_key_value_heads": 2, "vocab_size": 2048, "max_position_embeddings": 128, "pad_token_id": 0}
PLAIN = {"rope_type": "default", "rope_theta": 77_777.0}
LINEAR = {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0}
YARN = {"rope_type": "yarn", "rope_theta": 77_777.0, "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LAYERS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 2, 3, 4]}
# One family for each way in which transformers 4.57 spells rotary embeddings.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"rope_parameters": LLAMA3 | {"original_max_position_embeddings": 32}},
    "qwen2": {"rope_parameters": YARN},
    "smollm3": {"rope_parameters": PLAIN},
    "stablelm": {"rope_parameters": PLAIN | {"partial_rotary_factor": 0.25}},
    "gpt_neox": {"rope_parameters": PLAIN | {"partial_rotary_factor": 0.5}},
    "phi3": {"rope_parameters": LONG, "original_max_position_embeddings": 32},
    "olmo3": LAYERS | {"rope_parameters": {"full_attention": YARN, "sliding_attention": PLAIN}},
    "gemma3_text": LAYERS
    | {
        "rope_parameters": {
            "full_attention": {**PLAIN, "rope_type": "linear", "factor": 8.0},
            "sliding_attention": PLAIN,
        }
    },
    "qwen3_moe": {"rope_parameters": PLAIN, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "gpt2": {},
}


EXPORTS = ("export", "base", "instruct")  # the last two with SmolLM2's tokenizers


class Reading(NamedTuple):
    """What both versions read."""

    folders: list[Path]
    old: dict[str, Any]  # transformers 4.57
    new: dict[str, Any]  # this version


def write_family(name: str, folder: Path) -> Path:
    """A random model of a family, in both spellings."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **SIZES | FAMILIES[name])).save_pretrained(folder)
    spell_config(folder)
    return folder


def write_export(source: Path, folder: Path) -> Path:
    """The export of a policy that is still its source."""
    template = load_template(AutoTokenizer.from_pretrained(source), "auto")
    export(CausalLM(str(source)), str(source), template=template, output=folder)
    return folder


@pytest.fixture(scope="module")
def reading(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Reading:
    """Exports and families, read by this process and by the other environment's interpreter."""
    python = Path(os.environ.get("SMOLLIT_READERS", ROOT / ".venv-readers" / "bin" / "python"))
    if not python.is_file():
        pytest.skip(f"{python} is missing: `make test-readers` makes it")
    folder = tmp_path_factory.mktemp("readers")
    sources = [named_tokens(tiny_model, folder / "source"), *real_tokenizers(tiny_model, folder)]
    folders = [write_export(source, folder / name) for source, name in zip(sources, EXPORTS, strict=False)]
    folders += [write_family(name, folder / name) for name in FAMILIES]
    script = Path(__file__).with_name("read.py")
    subprocess.run([python, script, folder / "old.json", *folders], check=True, cwd=folder)
    new = {each.name: read(each) for each in folders}
    return Reading(folders, json.loads((folder / "old.json").read_text()), json.loads(json.dumps(new)))


def named_tokens(model: Path, folder: Path) -> Path:
    """A source with SmolLM2's rotary base, additional special tokens, and generation settings of its own."""
    rope = {"rope_type": "default", "rope_theta": 100_000.0}
    edited(model, folder, rope_parameters=rope)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.save_pretrained(folder)
    settings = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.1, "eos_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return folder


def real_tokenizers(model: Path, folder: Path) -> list[Path]:
    """Small models with the tokenizers and templates of SmolLM2, where ../shared has them."""
    found = []
    for source in sorted((ROOT.parent / "shared" / "models" / "smollm2-tokenizer").glob("*-135M")):
        target = edited(model, folder / f"source-{source.name}", vocab_size=49_152)
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(target)).save_pretrained(target)
        AutoTokenizer.from_pretrained(source).save_pretrained(target)
        found.append(target)
    return found


# promise: other-readers
# case: E1
@pytest.mark.parametrize("name", ["export", *FAMILIES])
def test_both_versions_give_the_same_logits(reading: Reading, name: str) -> None:
    """Rotary base 100,000, not the default 10,000; scaled, partial, by layer type, and families without any."""
    assert reading.old["transformers"].startswith("4.57")
    old, new = (torch.tensor(found[name]["logits"]) for found in (reading.old["folders"], reading.new))
    torch.testing.assert_close(old, new, rtol=0, atol=1e-6)


# promise: other-readers
# case: E2
@pytest.mark.parametrize("name", ["export", *(pytest.param(name, marks=pytest.mark.shared) for name in EXPORTS[1:])])
def test_both_versions_tokenize_render_and_respond_alike(
    reading: Reading, name: str, request: pytest.FixtureRequest
) -> None:
    """Ids of six texts, special tokens, the rendered chat, `generate` with the tokenizer's own inputs, the pipeline."""
    if name != "export":
        request.getfixturevalue("shared")
    old, new = reading.old["folders"][name], reading.new[name]
    for key in ("ids", "decoded", "special", "chat", "generated", "pipeline"):
        assert old[key] == new[key], key
    settings = json.loads((reading.folders[0] / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert settings["additional_special_tokens"] == ["<|im_start|>", "<|im_end|>"]


# case: E3
def test_both_versions_keep_the_sources_generation_settings(reading: Reading) -> None:
    """Temperature 0.7, top_p 0.9 and the penalty 1.1 of the source; the turn end 2 is added to its stop token 0."""
    expected = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.1}
    expected |= {"eos_token_id": [2, 0], "pad_token_id": 0}
    assert reading.old["folders"]["export"]["generation"] == reading.new["export"]["generation"] == expected


def test_peft_trains_it(reading: Reading) -> None:
    """A new LoRA adapter changes no logit: its B is 0."""
    old, new = reading.old["peft"], reading.new["export"]
    torch.testing.assert_close(torch.tensor(old["logits"]), torch.tensor(new["logits"]), rtol=0, atol=1e-6)
    assert old["trainable"] > 0


def test_trl_trains_it(reading: Reading) -> None:
    """TRL's first loss, from the folder's name alone: -log p of T - 1 tokens, which transformers 4 divides by T."""
    if "trl" not in reading.old:
        pytest.skip("TRL is not installed: EXTRAS=dev,trl")
    folder = reading.folders[0]
    chat = AutoTokenizer.from_pretrained(folder).apply_chat_template(TRAINED, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        loss = AutoModelForCausalLM.from_pretrained(folder)(**chat, labels=chat["input_ids"]).loss.item()
    length = chat["input_ids"].shape[1]
    assert reading.old["trl"] == pytest.approx(loss * (length - 1) / length, abs=1e-3)  # logged with few digits
