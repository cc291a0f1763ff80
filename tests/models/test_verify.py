"""Backends are verified by their numbers when a model is loaded, and the layout does not go through the model."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from smollit.batch import Batch
from smollit.data.batching.collate import collate_chats, collate_pairs
from smollit.functional.attention import AttentionBackend
from smollit.models import CausalLM
from smollit.models.sharding import decoder_layers
from tests.conftest import batch_of, chats_of
from tests.models.families import save_family

CHATS = chats_of([5, 6, 7, 8, 9, 10, 11], [20, 21, 22])
PAIR = {"prompt_ids": [1, 50, 60], "chosen_ids": [80, 90, 2], "rejected_ids": [81, 91, 11, 2], "row": 0}


def separate_sum(folder: Path, sequences: list[tuple[list[int], int]]) -> torch.Tensor:
    """Sum of log p of the tokens from `start` on, each sequence by itself through transformers' eager attention."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    total = torch.zeros(())
    for ids, start in sequences:
        logps = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0].float(), dim=1)
        total = total + sum(logps[index - 1, ids[index]] for index in range(start, len(ids)))
    return total


# promise: attention-check
# case: G1
@pytest.mark.slow
@pytest.mark.parametrize("family", ["StableLM", "Nemotron"])
@pytest.mark.parametrize("checkpointing", [False, True, "selective"])
def test_documents_are_separate_in_families_that_hand_no_arguments_on(
    family: str, checkpointing: bool, tmp_path: Path
) -> None:
    """Two chats packed into one sequence, and a pair that shares its prompt: as each row by itself, to 1e-5. A second
    forward pass, of the pair, runs before the first one's backward pass recomputes its layers."""
    folder = save_family(family, tmp_path / "model")
    model = CausalLM(str(folder), attention="documents", gradient_checkpointing=checkpointing).train()
    chats, pairs = model(batch_of(CHATS, packed=True)).sums, model(batch_of([PAIR])).sums
    prompt = PAIR["prompt_ids"]
    rows = [(prompt + PAIR[name], len(prompt)) for name in ("chosen_ids", "rejected_ids")]
    expected = separate_sum(folder, [(chat["input_ids"], 1) for chat in CHATS])
    torch.testing.assert_close(chats.sum(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(pairs.sum(), separate_sum(folder, rows), rtol=1e-5, atol=1e-5)
    chats.sum().backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    plain = CausalLM(str(folder), attention="sdpa")
    plain(batch_of(CHATS)).sums.sum().backward()
    expected_gradients = {name: parameter.grad for name, parameter in plain.named_parameters() if name in found}
    torch.testing.assert_close(found, expected_gradients, rtol=1e-5, atol=1e-5)


def test_a_model_loaded_under_autocast_gets_the_same_backend(tiny_model: Path) -> None:
    """The numbers are compared in fp32: bf16 has 8 bits, so it differs by about 4e-3, and the tolerance is 1e-4."""
    with torch.autocast("cpu", torch.bfloat16):
        assert CausalLM(str(tiny_model), attention="auto").attention == "documents"


# case: G1
def test_a_layer_that_is_recomputed_without_its_layout_is_an_error(tiny_model: Path) -> None:
    """FSDP has activation checkpointing of its own, which would compute plain attention in the backward pass."""
    model = CausalLM(str(tiny_model))
    layers = decoder_layers(model)
    layers[0] = checkpoint_wrapper(layers[0])
    loss = model(batch_of(CHATS, packed=True)).sums.sum()
    with pytest.raises(RuntimeError, match=r"without the layout of its batch: use `model.gradient_checkpointing`"):
        loss.backward()


# case: G1, G2
@pytest.mark.parametrize("family", ["Gemma 2", "Gemma 3", "gpt-oss", "Llama, SmolLM, SmolLM2"])
def test_the_model_inside_is_still_that_of_transformers(family: str, tmp_path: Path) -> None:
    """Called by itself, with padding on the left and rows longer than the window of 5: transformers' own logits."""
    folder, ids = save_family(family, tmp_path / "model"), torch.arange(3, 27).view(2, 12)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    found, expected = (
        model(input_ids=ids, attention_mask=mask).logits
        for model in (
            CausalLM(str(folder)).model,
            AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager"),
        )
    )
    torch.testing.assert_close(found, expected)


# promise: attention-check
# case: G1, G4
@pytest.mark.parametrize(
    ("family", "backend"),
    [("Llama, SmolLM, SmolLM2", "documents"), ("gpt-oss", "eager"), ("LFM2", "rows"), ("BLOOM", "rows")],
)
def test_auto_takes_the_first_backend_that_is_right(
    family: str,
    backend: AttentionBackend,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """gpt-oss has sinks, which only its own eager attention knows; LFM2's convolutions and BLOOM's own attention let
    joined documents see each other. What is not `documents` is said, and `rows` with its cost."""
    monkeypatch.setattr("smollit.models.attention.verify._verified", {})  # another test may have loaded one of them
    folder = save_family(family, tmp_path / "model")
    with caplog.at_level(logging.INFO):
        model = CausalLM(str(folder))
    assert model.attention == backend
    assert (f"`model.attention: {backend}`" in caplog.text) == (backend != "documents")
    assert ("`data.packing: off`" in caplog.text) == (backend == "rows")
    expected = separate_sum(folder, [(chat["input_ids"], 1) for chat in CHATS])
    torch.testing.assert_close(model(batch_of(CHATS)).sums.sum(), expected, rtol=1e-5, atol=1e-5)


# case: G4
@pytest.mark.parametrize("family", ["LFM2", "Mamba"])
def test_a_backend_that_is_not_right_is_refused_by_name(family: str, tmp_path: Path) -> None:
    folder = save_family(family, tmp_path / "model")
    with pytest.raises(ValueError, match=r"`model.attention: documents` is not right for a .* model.*Use rows"):
        CausalLM(str(folder), attention="documents")


# case: G4
@pytest.mark.parametrize("batch", [collate_chats([]), collate_pairs([[PAIR]])])
def test_rows_train_pairs_and_empty_batches(batch: Batch, tiny_model: Path) -> None:
    """Sums and gradients of `rows` equal those of `documents`, to 1e-5."""
    found = []
    for attention in ("rows", "documents"):
        model = CausalLM(str(tiny_model), attention=attention)  # type: ignore[arg-type]
        sums = model(batch).sums
        sums.sum().backward()
        found.append((sums, [parameter.grad for parameter in model.parameters()]))
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


# case: G3
def test_a_head_that_changes_logits_in_another_way_is_refused(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits + 1 for negative ones is neither a scale nor a cap."""
    original = LlamaForCausalLM.forward

    def changed(self: LlamaForCausalLM, *args: Any, **kwargs: Any) -> Any:
        output = original(self, *args, **kwargs)
        output.logits = output.logits + (output.logits < 0)
        return output

    monkeypatch.setattr(LlamaForCausalLM, "forward", changed)
    with pytest.raises(ValueError, match="changes its logits in a way that smollit does not support"):
        CausalLM(str(tiny_model))


# promise: logits-check
# case: G3
@pytest.mark.parametrize("family", ["Gemma 2", "Cohere", "Granite", "Phi-2", "Falcon-H1"])
@pytest.mark.parametrize("token_gradients", [False, True])
def test_the_chunked_head_is_the_models_own(family: str, token_gradients: bool, tmp_path: Path) -> None:
    """Capped, scaled, divided, multiplied logits, and a bias: log p, mean logits and every gradient, to 1e-5."""
    folder = save_family(family, tmp_path / "model")
    model, plain = (
        CausalLM(str(folder), chunk_size=3),
        AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").train(),
    )
    scores = model(batch_of([PAIR]), mean_logits=True, token_gradients=token_gradients)
    logps, means = [], []
    for name in ("chosen_ids", "rejected_ids"):
        response = torch.tensor(PAIR[name])
        logits = plain(input_ids=torch.tensor([PAIR["prompt_ids"] + PAIR[name]])).logits[0, 2:-1]
        logps.append(torch.log_softmax(logits, dim=1).gather(1, response[:, None]).sum())
        means.append(logits.mean(dim=1))
    torch.testing.assert_close(scores.sums, torch.stack(logps), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scores.mean_logits, torch.cat(means).detach(), rtol=1e-5, atol=1e-5)
    (2 * scores.sums[0] - scores.sums[1]).backward()
    (2 * logps[0] - logps[1]).backward()
    found = {name: parameter.grad for name, parameter in model.model.named_parameters()}
    expected = {name: parameter.grad for name, parameter in plain.named_parameters()}
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5)


# promise: attention-check
# case: G2
@pytest.mark.slow
@pytest.mark.parametrize("family", ["Gemma 3", "OLMo 3", "Mistral with a window", "Qwen2 with windows", "Gemma 2"])
@pytest.mark.parametrize("attention", ["documents", "sdpa", "eager", "flex_attention"])
def test_a_sliding_window_is_one_more_term_of_the_rule(
    family: str, attention: AttentionBackend, tmp_path: Path
) -> None:
    """A window of 5, in every layer or in one of two. Chats of 9 and 7 tokens in one sequence, and a pair of 4 + 7 and
    4 + 9: as transformers computes each row alone, to 1e-6."""
    folder = save_family(family, tmp_path / "model")
    if (family, attention) == ("Gemma 2", "sdpa"):  # torch's kernel has no cap of scores
        with pytest.raises(ValueError, match=r"`model.attention: sdpa` is not right for a gemma2 model"):
            CausalLM(str(folder), attention=attention)
        return
    chats = chats_of(list(range(10, 19)), list(range(30, 37)))
    pair = {
        "prompt_ids": [1, 3, 4, 5],
        "chosen_ids": list(range(60, 67)),
        "rejected_ids": list(range(70, 79)),
        "row": 0,
    }
    rows = [(chat["input_ids"], 1) for chat in chats]
    rows += [(pair["prompt_ids"] + pair[name], 4) for name in ("chosen_ids", "rejected_ids")]
    model = CausalLM(str(folder), attention=attention).eval()
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        found = [model(batch_of(chats, packed=True)).sums.sum(), model(batch_of([pair])).sums.sum()]
        expected = [separate_sum(folder, rows[:2]), separate_sum(folder, rows[2:])]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
