"""Tokens that are added: embeddings grow, stay tied, and begin as the mean; a token without one is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from smollit.data import UltraChatDataModule
from smollit.models.causal_lm import CausalLM
from smollit.models.vocabulary import fit_vocabulary
from smollit.modules import SFTModule
from smollit.training import SmollitTrainer

MARKERS = ["</s>", "<|assistant|>", "<|user|>"]  # the article's, which the tiny tokenizer splits


def run(model: Path, folder: Path, **data: Any) -> tuple[SmollitTrainer, SFTModule, UltraChatDataModule]:
    rows = [
        {"messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": "a"}]} for n in range(4)
    ]
    folder.mkdir(exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    module = UltraChatDataModule(
        str(folder / "rows.jsonl"),
        val_split=None,
        tokenizer_name=str(model),
        chat_template="article",
        max_length=64,
        cache_dir=str(folder / "cache"),
        **data,
    )
    trainer = SmollitTrainer(
        str(folder), accelerator="cpu", devices=1, logger=False, max_steps=1, checkpoint_every_n_steps=1
    )
    policy = SFTModule(str(model))
    trainer.fit(policy, datamodule=module)
    return trainer, policy, module


def test_new_rows_are_the_mean_of_the_old_ones_and_stay_tied(tiny_model: Path) -> None:
    model = CausalLM(str(tiny_model)).model
    before = model.get_input_embeddings().weight.detach().clone()
    fit_vocabulary(model, len(before), can_grow=False)  # nothing to do
    fit_vocabulary(model, len(before) - 5, can_grow=True)  # never smaller
    assert torch.equal(model.get_input_embeddings().weight, before)
    fit_vocabulary(model, len(before) + 2, can_grow=True)
    grown = model.get_input_embeddings().weight
    assert torch.equal(grown[: len(before)], before)
    torch.testing.assert_close(grown[len(before) :], (before.sum(dim=0) / len(before)).expand(2, -1))
    assert grown is model.get_output_embeddings().weight
    assert model.config.vocab_size == len(before) + 2


# case: template-08
def test_a_token_without_an_embedding_is_refused(tiny_model: Path) -> None:
    model = CausalLM(str(tiny_model)).model
    rows = model.get_input_embeddings().weight.shape[0]
    with pytest.raises(ValueError, match=rf"{rows + 1:,} tokens, and the model embeddings for {rows:,}: .*add_tokens"):
        fit_vocabulary(model, rows + 1, can_grow=False)


# case: template-08
def test_markers_become_tokens_of_the_model_and_of_its_export(tiny_model: Path, tmp_path: Path) -> None:
    """3 markers that split: each is one token then, the vocabulary is 3 larger, also in the exported folder."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    rows = len(tokenizer)
    assert min(len(tokenizer(marker, add_special_tokens=False)["input_ids"]) for marker in MARKERS) > 1
    trainer, module, data = run(tiny_model, tmp_path / "run", add_tokens=True)
    assert data.template.split_markers() == []
    assert data.vocabulary_size == rows + 3
    assert module.policy.config.vocab_size == rows + 3  # type: ignore[union-attr]
    ids = data.template.encode(MARKERS)
    assert sorted(ids) == [[rows], [rows + 1], [rows + 2]]
    trainer.export(SFTModule(str(tiny_model)), data, output=str(tmp_path / "export"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    assert model.get_input_embeddings().weight.shape[0] == rows + 3
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    stops = model.generation_config.eos_token_id
    assert ids[0][0] in (stops if isinstance(stops, list) else [stops])  # </s> ends an answer


def test_another_setting_is_another_cache_entry(tiny_model: Path) -> None:
    keys = []
    for add_tokens in (False, True):
        data = UltraChatDataModule("x", tokenizer_name=str(tiny_model), chat_template="article", add_tokens=add_tokens)
        keys.append(data.template.tokenizer_hash)
    assert keys[0] != keys[1]
