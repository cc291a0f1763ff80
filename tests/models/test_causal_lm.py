"""CausalLM against plain transformers: full logits and log_softmax, one unpadded row per sequence."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from smollit.batch import Batch
from smollit.data.batching.collate import collate_chats, collate_pairs, unpacked
from smollit.functional.attention import AttentionBackend
from smollit.models.attention import decoder_inputs
from smollit.models.causal_lm import CausalLM, TokenScores
from smollit.models.recompute import GradientCheckpointing

TRAINED_ON_CPU: tuple[AttentionBackend, ...] = ("documents", "sdpa", "eager")
# flex_attention has no backward pass on a CPU: here it is only looked at, and trained in tests/gpu
BACKENDS: tuple[AttentionBackend, ...] = (*TRAINED_ON_CPU, "flex_attention")
PROMPT, CHOSEN, REJECTED = [1, 50, 60, 70], [80, 90, 2], [81, 91, 101, 111, 2]
PAIRS = [
    {"prompt_ids": PROMPT, "chosen_ids": CHOSEN, "rejected_ids": REJECTED, "row": 0},
    {"prompt_ids": [1, 55], "chosen_ids": [65, 75, 85, 2], "rejected_ids": [2], "row": 1},
]
ANSWERS = [(pair["prompt_ids"], pair[name]) for pair in PAIRS for name in ("chosen_ids", "rejected_ids")]


def answer_logps(model: PreTrainedModel, prompt: list[int], answer: list[int]) -> Tensor:
    """log p of each answer token: one row, no padding, all logits, log_softmax."""
    logits = model(input_ids=torch.tensor([prompt + answer]), use_cache=False).logits[0].float()
    logps = torch.log_softmax(logits, dim=1)
    return torch.stack([logps[len(prompt) + index - 1, token] for index, token in enumerate(answer)])


def score(model: CausalLM, batch: Batch, **options: Any) -> TokenScores:
    """The scores, with gradient where the backend has one on this machine."""
    with torch.set_grad_enabled(model.attention in TRAINED_ON_CPU):
        return model(batch, **options)


def chats_of(*ids: list[int]) -> list[dict[str, Any]]:
    """Chats that are trained from their second token on."""
    return [{"input_ids": tokens, "spans": [1, len(tokens)], "row": row} for row, tokens in enumerate(ids)]


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad.clone() for name, parameter in module.named_parameters() if parameter.grad is not None}


def edited(model: Path, folder: Path, **settings: Any) -> Path:
    """A copy of a model's folder with other settings in config.json."""
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text()) | settings
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(autouse=True)
def _flex_attention_without_its_compiler() -> Iterator[None]:
    """It would compile a minute for each shape; uncompiled it computes the same."""
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


@pytest.fixture
def plain(tiny_model: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(tiny_model).train()


# ---- scores


# case: dpo-loss-09
@pytest.mark.parametrize("attention", BACKENDS)
def test_a_pair_that_shares_its_prompt_scores_like_separate_rows(
    tiny_model: Path, plain: PreTrainedModel, attention: AttentionBackend
) -> None:
    """sum log p(answer | prompt) of 4 answers, each pair in a row and both in one row: to 1e-6 relative."""
    model = CausalLM(str(tiny_model), attention=attention, chunk_size=3)
    expected = torch.stack([answer_logps(plain, *answer).sum() for answer in ANSWERS])
    for rows in (unpacked(PAIRS), [PAIRS]):
        scores = score(model, collate_pairs(rows))
        assert len(scores.logps) == sum(len(answer) for _, answer in ANSWERS)
        torch.testing.assert_close(scores.sums, expected, rtol=1e-6, atol=1e-6)


# case: dpo-loss-09
@pytest.mark.parametrize("attention", TRAINED_ON_CPU)
@pytest.mark.parametrize("packed", [False, True])
def test_a_pair_that_shares_its_prompt_has_the_gradients_of_separate_rows(
    tiny_model: Path, plain: PreTrainedModel, attention: AttentionBackend, packed: bool
) -> None:
    """Of the sums of 4 answers, weighted with 1, -2, 3 and -4; in two rows, or packed in one."""
    model = CausalLM(str(tiny_model), attention=attention, chunk_size=3)
    found = model(collate_pairs([PAIRS] if packed else unpacked(PAIRS))).sums
    expected = torch.stack([answer_logps(plain, *answer).sum() for answer in ANSWERS])
    weights = torch.tensor([1.0, -2.0, 3.0, -4.0])
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    ours = {name.removeprefix("model."): gradient for name, gradient in gradients(model).items()}
    for name, gradient in gradients(plain).items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pairs", [PAIRS[:1], PAIRS])
def test_sums_of_answers_are_those_of_their_tokens(tiny_model: Path, pairs: list[dict[str, Any]]) -> None:
    """One pair (the head in one pass) and two (logits made again): sums of log p and gradients of -1, 2, -3 and 4 times
    the sums equal those of `logps`, which any loss may use, to 1e-6 relative. 2 N sums, chosen before rejected."""
    model = CausalLM(str(tiny_model), chunk_size=3)
    batch = collate_pairs(unpacked(pairs))
    weights = torch.tensor([-1.0, 2.0, -3.0, 4.0])[: 2 * len(pairs)]
    expected = model(batch, token_gradients=True).sums
    (expected * weights).sum().backward()
    before = gradients(model)
    model.zero_grad()
    scores = model(batch)
    (scores.sums * weights).sum().backward()
    torch.testing.assert_close(scores.sums, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(scores.per_response(scores.logps), scores.sums.detach())
    assert not scores.logps.requires_grad
    torch.testing.assert_close(gradients(model), before, rtol=1e-5, atol=1e-6)


# case: mask-01, dpo-loss-12
@pytest.mark.parametrize("attention", BACKENDS)
def test_rows_do_not_depend_on_their_batch_mates(
    tiny_model: Path, plain: PreTrainedModel, attention: AttentionBackend
) -> None:
    """Chats of 4 and 8 tokens in one padded batch score as each alone, the turn ends (id 2) included."""
    ids = [[1, 50, 60, 2], [1, 51, 61, 71, 2, 81, 91, 2]]
    spans = [[2, 4], [2, 5, 6, 8]]
    model = CausalLM(str(tiny_model), attention=attention)
    chats = [{"input_ids": i, "spans": s, "row": 0} for i, s in zip(ids, spans, strict=True)]
    scores = score(model, collate_chats(unpacked(chats)))
    expected = []
    for row, span in zip(ids, spans, strict=True):
        every = answer_logps(plain, row[:1], row[1:])
        expected += [every[start - 1 : end - 1] for start, end in zip(span[::2], span[1::2], strict=True)]
    torch.testing.assert_close(scores.logps, torch.cat(expected), rtol=1e-5, atol=1e-6)


# case: data-15
@pytest.mark.parametrize("attention", BACKENDS)
@pytest.mark.parametrize("multiple", [8, 16])
def test_extra_padding_changes_nothing(tiny_model: Path, attention: AttentionBackend, multiple: int) -> None:
    """Chats of 9 and 3 tokens, rows of 8 or 16 positions, one behind the other in a row of 10, and pairs likewise:
    equal log-probabilities and counts."""
    chats, model = chats_of(list(range(40, 49)), [40, 41, 42]), CausalLM(str(tiny_model), attention=attention)
    for collate, rows, num_tokens in (
        (collate_chats, unpacked(chats), 8 + 2),
        (collate_chats, [chats], 8 + 2),
        (collate_pairs, unpacked(PAIRS), (3 + 3 + 5) + (1 + 4 + 1)),
        (collate_pairs, [PAIRS], (3 + 3 + 5) + (1 + 4 + 1)),
    ):
        padded, bare = collate(rows, multiple), collate(rows)
        assert padded.input_ids.shape[1] % multiple == 0
        assert padded.num_tokens == bare.num_tokens == num_tokens
        torch.testing.assert_close(score(model, padded).logps, score(model, bare).logps, rtol=1e-6, atol=1e-6)


# case: metrics-12
def test_correct_and_mean_logits_are_those_of_the_same_positions(tiny_model: Path, plain: PreTrainedModel) -> None:
    """arg-max and mean over all logits at the positions with a target; 3 + 5 + 4 + 1 of them."""
    model = CausalLM(str(tiny_model))
    scores = model(collate_pairs(unpacked(PAIRS[:1])), correct=True, mean_logits=True)
    positions, means = [], []
    for answer in (CHOSEN, REJECTED):
        logits = plain(input_ids=torch.tensor([PROMPT + answer])).logits[0]
        there = logits[len(PROMPT) - 1 : -1]
        positions += (there.argmax(dim=1) == torch.tensor(answer)).tolist()
        means.append(there.mean(dim=1))
    assert scores.correct.tolist() == positions
    torch.testing.assert_close(scores.mean_logits, torch.cat(means), rtol=1e-4, atol=1e-6)


def test_targets_that_the_model_predicts_are_correct(tiny_model: Path, plain: PreTrainedModel) -> None:
    """The target is the arg-max of the row's last logits: correct; another word: not."""
    best = plain(input_ids=torch.tensor([PROMPT])).logits[0, -1].argmax().item()
    model = CausalLM(str(tiny_model))
    for token, correct in ((best, True), ((best + 1) % 2048, False)):
        chat = {"input_ids": [*PROMPT, token], "spans": [4, 5], "row": 0}
        assert model(collate_chats(unpacked([chat])), correct=True).correct.tolist() == [correct]


def test_what_was_not_asked_for_is_not_computed(tiny_model: Path) -> None:
    """Neither hits nor mean logits: each is another look at all words."""
    scores = CausalLM(str(tiny_model))(collate_pairs(unpacked(PAIRS)))
    assert scores.correct is None
    assert scores.mean_logits is None


# case: mask-02
@pytest.mark.parametrize("attention", TRAINED_ON_CPU)
def test_a_batch_without_targets_scores_nothing_with_a_graph(tiny_model: Path, attention: AttentionBackend) -> None:
    """0 targets and 0 rows: the sum is 0.0, and all 20 parameters get a gradient of 0."""
    model = CausalLM(str(tiny_model), attention=attention, gradient_checkpointing=True)
    untrained = collate_chats(unpacked([{"input_ids": PROMPT, "spans": [], "row": 0}]))
    for batch in (untrained, collate_chats([]), collate_pairs([])):
        total = model(batch).sums.sum()
        assert total.item() == 0.0
        total.backward()
        assert len(gradients(model)) == 20
        assert all(gradient.abs().max() == 0 for gradient in gradients(model).values())


# ---- attention


# case: packing-01
@pytest.mark.parametrize("attention", BACKENDS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("num_rows", [1, 2])
def test_packed_documents_score_as_if_alone(
    tiny_model: Path, attention: AttentionBackend, training: bool, checkpointing: bool, num_rows: int
) -> None:
    """Documents of 5 and 4 ids in one row: |log p(packed) - log p(alone)| < 1e-5; another document A leaves B as is."""
    model = CausalLM(str(tiny_model), attention=attention, gradient_checkpointing=checkpointing).train(training)
    first, second, other = chats_of([1, 50, 60, 70, 2], [1, 51, 61, 2], [9, 8, 7, 6, 5])
    alone = torch.cat([score(model, collate_chats([[chat]])).logps for chat in (first, second)])
    packed = score(model, collate_chats([[first, second]] * num_rows)).logps
    changed = score(model, collate_chats([[other, second]] * num_rows)).logps
    torch.testing.assert_close(packed, alone.repeat(num_rows), rtol=0, atol=1e-5)
    for row in range(num_rows):
        torch.testing.assert_close(changed[7 * row + 4 : 7 * row + 7], alone[4:], rtol=0, atol=1e-5)
        assert (changed[7 * row : 7 * row + 4] - alone[:4]).abs().max() > 1e-3


# case: packing-01
@pytest.mark.parametrize("attention", BACKENDS)
def test_packed_pairs_score_as_if_alone(tiny_model: Path, attention: AttentionBackend) -> None:
    """Three pairs in rows of two and one; with other tokens in any part of the first pair, the others stay as they
    are: nobody sees another pair's prompt, chosen or rejected answer."""
    model = CausalLM(str(tiny_model), attention=attention)
    third = PAIRS[0] | {"prompt_ids": [1, 7, 9], "chosen_ids": [5, 2]}
    alone = torch.cat([score(model, collate_pairs([[pair]])).sums for pair in (*PAIRS, third)])
    packed = score(model, collate_pairs([PAIRS, [third]])).sums
    torch.testing.assert_close(packed, alone, rtol=0, atol=1e-5)
    for name in ("prompt_ids", "chosen_ids", "rejected_ids"):
        other = PAIRS[0] | {name: [token + 300 for token in PAIRS[0][name]]}
        changed = score(model, collate_pairs([[other, PAIRS[1]], [third]])).sums
        assert (changed[:2] - alone[:2]).abs().max() > 1e-3
        torch.testing.assert_close(changed[2:], alone[2:], rtol=0, atol=1e-5)
        if name != "prompt_ids":  # the two answers of one pair do not see each other either
            kept = 1 if name == "chosen_ids" else 0
            torch.testing.assert_close(changed[kept], alone[kept], rtol=0, atol=1e-5)


# case: packing-03
@pytest.mark.parametrize("attention", BACKENDS)
def test_packing_keeps_the_trained_tokens_and_their_mean_loss(tiny_model: Path, attention: AttentionBackend) -> None:
    """3 chats with 2, 5 and 3 trained tokens: 10 either way, mean loss to 1e-5; pairs likewise."""
    model = CausalLM(str(tiny_model), attention=attention)
    spans = [[2, 4], [1, 3, 4, 7], [3, 6]]
    chats = [{"input_ids": list(range(30, 37))[: s[-1]], "spans": s, "row": 0} for s in spans]
    for collate, examples, trained in ((collate_chats, chats, 2 + 2 + 3 + 3), (collate_pairs, PAIRS, 3 + 5 + 4 + 1)):
        packed, apart = collate([examples]), collate(unpacked(examples))
        assert packed.num_loss_tokens == apart.num_loss_tokens == trained
        found, expected = score(model, packed), score(model, apart)
        torch.testing.assert_close(found.logps.mean(), expected.logps.mean(), rtol=1e-5, atol=0)
        assert torch.equal(found.response, expected.response)


# case: packing-03
@pytest.mark.parametrize("attention", TRAINED_ON_CPU)
def test_packing_keeps_the_gradients(tiny_model: Path, attention: AttentionBackend) -> None:
    """Of the sum over 3 chats, packed in 2 rows or each in its own: to 1e-5."""
    found = []
    chats = chats_of([1, 50, 60, 70, 2], [1, 51, 61, 2], [9, 8, 7, 6, 5])
    for rows in (unpacked(chats), [chats[:2], chats[2:]]):
        model = CausalLM(str(tiny_model), attention=attention)
        model(collate_chats(rows)).sums.sum().backward()
        found.append(gradients(model))
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-5, atol=1e-5)


# case: packing-05
def test_flash_attention_is_refused_on_a_cpu(tiny_model: Path) -> None:
    """No quiet fallback: it says what is missing and what to take."""
    with pytest.raises(ValueError, match=r"`model.attention: flash_attention_2` needs a CUDA GPU.*use `documents`"):
        CausalLM(str(tiny_model), attention="flash_attention_2")


def test_flash_attention_is_told_the_borders_and_refuses_pairs() -> None:
    """Chats of 4 and 3 positions in one row: borders 0, 4 and 7, the longest 4. It has no branches."""
    options = decoder_inputs(
        collate_chats([chats_of([1, 2, 3, 4, 5], [6, 7, 8, 9])]), "flash_attention_2", torch.float32
    ).options
    assert options["cu_seq_lens_q"].tolist() == options["cu_seq_lens_k"].tolist() == [0, 4, 7]
    assert options["max_length_q"] == options["max_length_k"] == 4
    with pytest.raises(ValueError, match=r"does not support responses that share a prompt: use `documents`"):
        decoder_inputs(collate_pairs([PAIRS]), "flash_attention_2", torch.float32)


@pytest.mark.parametrize("collate", [collate_chats, collate_pairs])
def test_documents_computes_the_real_tokens_only(tiny_model: Path, collate: Any) -> None:
    """Rows of 8 + 2 and 8 positions (pairs: 11 + 6 and 11) padded to a multiple of 64: every linear layer of every
    decoder layer gets [1, sum of lengths]; the empty batch has one position."""
    sizes: set[torch.Size] = set()
    model = CausalLM(str(tiny_model))
    for layer in model.model.model.layers:
        for part in layer.modules():
            if isinstance(part, nn.Linear):
                part.register_forward_hook(lambda _, inputs, output: sizes.add(inputs[0].shape[:2]))
    pairs = collate is collate_pairs
    examples = PAIRS if pairs else chats_of(list(range(9)), [7, 8, 9])
    model(collate([examples, examples[:1]], 64))
    assert sizes == {torch.Size([1, 11 + 6 + 11 if pairs else 8 + 2 + 8])}
    sizes.clear()
    model(collate([]))
    assert sizes == {torch.Size([1, 1])}


def test_rows_of_one_document_need_no_mask(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two padded chats: scaled_dot_product_attention gets no mask and is_causal, so its fast kernels stay in use: one
    call per layer for both rows (sdpa), or per layer and chat (documents)."""
    calls: list[tuple[Any, Any]] = []
    attend = nn.functional.scaled_dot_product_attention

    def watch(*args: Any, **options: Any) -> Tensor:
        calls.append((options.get("attn_mask"), options.get("is_causal")))
        return attend(*args, **options)

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", watch)
    for attention, num_calls in (("sdpa", 2), ("documents", 2 * 2)):
        model = CausalLM(str(tiny_model), attention=attention)  # type: ignore[arg-type]
        calls.clear()
        model(collate_chats(unpacked(chats_of(list(range(30, 39)), [30, 31, 32, 33]))))
        assert calls == [(None, True)] * num_calls


@pytest.mark.parametrize("attention", TRAINED_ON_CPU)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_masks_fit_under_autocast(tiny_model: Path, attention: AttentionBackend, dtype: torch.dtype) -> None:
    """fp32 weights under bf16 and fp16 autocast: log p within 2 % of fp32, in fp32, and finite gradients."""
    model = CausalLM(str(tiny_model), attention=attention)
    expected = model(collate_pairs(unpacked(PAIRS))).logps
    with torch.autocast("cpu", dtype):
        found = model(collate_pairs(unpacked(PAIRS))).logps
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)
    model(collate_pairs(unpacked(PAIRS))).sums.sum().backward()
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())


# ---- gradient checkpointing, dtypes, casts


# case: precision-01
@pytest.mark.parametrize("attention", TRAINED_ON_CPU)
def test_checkpointing_runs_every_layer_twice(tiny_model: Path, attention: AttentionBackend) -> None:
    """2 layers: 2 forwards, and 2 more in the backward pass; without checkpointing 2 and none."""
    for checkpointing, expected in ((True, 4), (False, 2)):
        model = CausalLM(str(tiny_model), attention=attention, gradient_checkpointing=checkpointing)
        calls: list[int] = []
        for layer in model.model.model.layers:
            layer.self_attn.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        loss = model(collate_pairs(unpacked(PAIRS))).sums.sum()
        assert len(calls) == 2
        loss.backward()
        assert len(calls) == expected


# case: perf-04
@pytest.mark.parametrize("attention", TRAINED_ON_CPU)
@pytest.mark.parametrize("checkpointing", [True, "selective"])
@pytest.mark.parametrize("frozen", [True, False])
def test_checkpointing_gives_the_same_gradients(
    tiny_model: Path, attention: AttentionBackend, checkpointing: GradientCheckpointing, frozen: bool
) -> None:
    """Packed pairs, to 1e-6. With frozen embeddings the input of layer 0 needs no gradient: its weights get theirs all
    the same."""
    found = []
    for setting in (False, checkpointing):
        model = CausalLM(str(tiny_model), attention=attention, gradient_checkpointing=setting)
        model.model.get_input_embeddings().weight.requires_grad_(not frozen)
        model(collate_pairs([PAIRS])).sums.sum().backward()
        found.append(gradients(model))
    assert any(".layers.0." in name for name in found[0])
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-6, atol=1e-6)


def test_selective_checkpointing_repeats_layers_but_not_their_matrix_products(tiny_model: Path) -> None:
    """Floating-point operations of matrix products, forward and backward: as many as without checkpointing, and fewer
    than with whole layers recomputed; each of the 2 layers is entered twice all the same."""
    operations, entered = {}, {}
    for setting in (True, "selective", False):
        calls: list[int] = []
        model = CausalLM(str(tiny_model), gradient_checkpointing=setting)  # type: ignore[arg-type]
        for layer in model.model.model.layers:
            layer.self_attn.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        with FlopCounterMode(display=False) as counter:
            model(collate_pairs([PAIRS])).sums.sum().backward()
        operations[setting], entered[setting] = counter.get_flop_counts()["Global"][torch.ops.aten.mm], len(calls)
    assert operations[True] > operations["selective"] == operations[False]
    assert entered == {True: 4, "selective": 4, False: 2}


# case: precision-02, precision-04
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_weights_load_in_the_dtype_asked_for_and_not_in_the_checkpoints(
    tiny_model: Path, tmp_path: Path, stored: torch.dtype
) -> None:
    """A bf16 or fp16 checkpoint gives fp32 parameters."""
    AutoModelForCausalLM.from_pretrained(tiny_model, dtype=stored).save_pretrained(tmp_path)
    assert {parameter.dtype for parameter in CausalLM(str(tmp_path)).parameters()} == {torch.float32}


@pytest.mark.parametrize("cast", [lambda m: m.to(torch.bfloat16), lambda m: m.bfloat16()])
def test_a_cast_leaves_the_rotary_frequencies_alone(tiny_model: Path, cast: Any) -> None:
    """Cast as a part of another module, as Lightning does for bf16-true: log p of 512 tokens equals, to the bit, that
    of weights loaded in bf16. With frequencies in bf16, 0.1 would be 0.10010: 0.05 radians off at position 500."""
    chat = collate_chats([chats_of([1, 50, 60, 70] * 128)])
    expected = CausalLM(str(tiny_model), dtype=torch.bfloat16)(chat).logps
    model = CausalLM(str(tiny_model))
    cast(nn.Sequential(model))
    assert next(model.parameters()).dtype == torch.bfloat16
    assert torch.equal(model(chat).logps, expected)


def test_random_weights_take_only_the_configuration(tmp_path: Path, tiny_model: Path) -> None:
    """config.json alone, bf16: 20 parameters, all bf16, in train mode."""
    shutil.copy(tiny_model / "config.json", tmp_path)
    model = CausalLM(str(tmp_path), weights="random", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert len(list(model.parameters())) == 20
    assert model.training
    assert model.model.training


def test_dropout_is_the_models_own_unless_set(tiny_model: Path, tmp_path: Path) -> None:
    """config.json says 0.3: null keeps it, 0 turns it off."""
    folder = str(edited(tiny_model, tmp_path / "model", attention_dropout=0.3))
    assert CausalLM(folder).model.model.layers[0].self_attn.attention_dropout == 0.3
    assert CausalLM(folder, dropout=0.0).model.model.layers[0].self_attn.attention_dropout == 0.0


def test_an_untied_head_is_trained_by_itself(tiny_model: Path, tmp_path: Path) -> None:
    """tie_word_embeddings false: 21 parameters, and the head's gradient is that of plain transformers."""
    config = AutoConfig.from_pretrained(tiny_model)
    config.tie_word_embeddings = False
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    model, plain = CausalLM(str(tmp_path)), AutoModelForCausalLM.from_pretrained(tmp_path)
    model(collate_pairs(unpacked(PAIRS[:1]))).sums.sum().backward()
    (answer_logps(plain, PROMPT, CHOSEN).sum() + answer_logps(plain, PROMPT, REJECTED).sum()).backward()
    assert len(list(model.parameters())) == 21
    torch.testing.assert_close(model.model.lm_head.weight.grad, plain.lm_head.weight.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("attention", BACKENDS)
def test_generation_stops_and_does_not_depend_on_batch_mates(tiny_model: Path, attention: AttentionBackend) -> None:
    """Greedy answers of two prompts together equal each alone, and end before the stop token; scoring afterwards is as
    it was."""
    model = CausalLM(str(tiny_model), attention=attention).eval()
    before = score(model, collate_pairs([PAIRS])).logps
    chats = [{"input_ids": [*ids, 5], "spans": [len(ids), len(ids) + 1], "row": 0} for ids in (PROMPT, [1, 9])]
    together = model.generate(collate_chats(unpacked(chats)), 5, [2])
    assert together == [model.generate(collate_chats(unpacked([chat])), 5, [2])[0] for chat in chats]
    stop = together[0][2]
    assert model.generate(collate_chats(unpacked(chats[:1])), 5, [stop]) == [together[0][: together[0].index(stop)]]
    assert torch.equal(score(model, collate_pairs([PAIRS])).logps, before)


def test_examples_longer_than_a_sliding_window_are_refused_with_our_masks(tiny_model: Path, tmp_path: Path) -> None:
    """Window 4, and responses of 3 + 3 and 3 + 5 positions: our mask would attend to more than the model's own."""
    model = CausalLM(str(edited(tiny_model, tmp_path / "model", sliding_window=4)))
    with pytest.raises(ValueError, match="has 8 tokens, and the model has a sliding window of 4"):
        model(collate_pairs(unpacked(PAIRS)))
    model(collate_chats([chats_of([5] * 5, [6] * 5)]))  # 4 positions each: within the window
    with pytest.raises(ValueError, match="sliding window of 4"):
        model(collate_chats(unpacked(chats_of([5] * 6))))


def test_rows_longer_than_the_positions_are_refused(tiny_model: Path) -> None:
    """1,024 positions, 1,025 tokens with a next one."""
    limit = AutoConfig.from_pretrained(tiny_model).max_position_embeddings
    chat = {"input_ids": [5] * (limit + 2), "spans": [1, 2], "row": 0}
    with pytest.raises(ValueError, match=f"{limit} positions"):
        CausalLM(str(tiny_model))(collate_chats(unpacked([chat])))


def test_packed_rows_may_be_longer_than_the_positions(tiny_model: Path) -> None:
    """1,024 positions, and two chats of 600 in one row: each fits, and scores as if alone."""
    model, chat = CausalLM(str(tiny_model)), chats_of([5, 6, 7] * 200)
    with torch.no_grad():
        torch.testing.assert_close(model(collate_chats([chat * 2])).logps[599:], model(collate_chats([chat])).logps)
