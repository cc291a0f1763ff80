"""Added tokens: embeddings grow, stay tied, and begin as the mean; a token without an embedding is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from callbacks import ExportHuggingFace
from smollit.models.causal_lm import CausalLM
from smollit.models.vocabulary import fit_vocabulary

MARKERS = ["</s>", "<|assistant|>", "<|user|>"]  # of the template `article`; the tiny tokenizer splits them


def test_new_rows_are_the_mean_of_the_old_ones_and_stay_tied(tiny_model: Path) -> None:
    """Two rows more; a vocabulary that fits, or is smaller, changes nothing."""
    model = CausalLM(str(tiny_model)).model
    before = model.get_input_embeddings().weight.detach().clone()
    fit_vocabulary(model, len(before), can_grow=False)
    fit_vocabulary(model, len(before) - 5, can_grow=True)
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
    size = model.get_input_embeddings().weight.shape[0]
    with pytest.raises(ValueError, match=rf"{size + 1:,} tokens, .* embeddings for {size:,}: .*add_tokens"):
        fit_vocabulary(model, size + 1, can_grow=False)


def test_ids_after_a_gap_need_embeddings(tiny_model: Path, tmp_path: Path, make_run: Any) -> None:
    """The last word has the id 5,000: 5,001 embeddings are needed, however many words there are."""
    shutil.copytree(tiny_model, tmp_path / "gap")
    parts = json.loads((tmp_path / "gap" / "tokenizer.json").read_text())
    words = parts["model"]["vocab"]
    words[max(words, key=words.get)] = 5000
    (tmp_path / "gap" / "tokenizer.json").write_text(json.dumps(parts))
    with pytest.raises(ValueError, match=r"the tokenizer has 5,001 tokens, .*`data.add_tokens: true`"):
        make_run(data={"tokenizer_name": str(tmp_path / "gap")}, max_steps=1).fit()


# case: template-08
def test_markers_become_tokens_of_the_model_and_of_its_export(tiny_model: Path, make_run: Any) -> None:
    """3 markers that the tokenizer splits become one token each: the vocabulary grows by 3, and the exported folder is
    that model, which stops at its end of turn."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    size = len(tokenizer)
    assert min(len(tokenizer(marker, add_special_tokens=False)["input_ids"]) for marker in MARKERS) > 1
    run = make_run([ExportHuggingFace()], data={"chat_template": "article", "add_tokens": True}, max_steps=1).fit()
    assert run.data.vocabulary_size == size + 3
    ids = AutoTokenizer.from_pretrained(run.folder / "export")(MARKERS, add_special_tokens=False)["input_ids"]
    assert sorted(ids) == [[size], [size + 1], [size + 2]]
    model = AutoModelForCausalLM.from_pretrained(run.folder / "export")
    assert model.get_input_embeddings().weight.shape[0] == size + 3
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    stops = model.generation_config.eos_token_id
    assert ids[0][0] in (stops if isinstance(stops, list) else [stops])  # </s> ends a response
