"""CausalLM against plain transformers: full logits and log_softmax, one unpadded row per sequence."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from smollit.batch import IGNORE, Batch
from smollit.data.collate import collate_chats, collate_pairs
from smollit.functional.attention import AttentionBackend
from smollit.functional.logps import sum_per_sequence
from smollit.models.causal_lm import CausalLM

BACKENDS: tuple[AttentionBackend, ...] = ("sdpa", "eager")
PROMPT, CHOSEN, REJECTED = [1, 50, 60, 70], [80, 90, 2], [81, 91, 101, 111, 2]
PAIRS = [
    {"prompt_ids": PROMPT, "chosen_ids": CHOSEN, "rejected_ids": REJECTED, "row": 0},
    {"prompt_ids": [1, 55], "chosen_ids": [65, 75, 85, 2], "rejected_ids": [2], "row": 1},
]


def answer_logps(model: PreTrainedModel, prompt: list[int], answer: list[int]) -> Tensor:
    """log p of each answer token: one row, no padding, all logits, log_softmax."""
    logits = model(input_ids=torch.tensor([prompt + answer]), use_cache=False).logits[0].float()
    logps = torch.log_softmax(logits, dim=1)
    return torch.stack([logps[len(prompt) + index - 1, token] for index, token in enumerate(answer)])


def pack(batch: Batch, num_rows: int) -> Batch:
    """Rows of a batch, one behind the other without their padding, in `num_rows` equal copies of documents."""
    fields = []
    real = batch.document >= 0
    for field in batch[:5]:
        fields.append(field[real][None].repeat(num_rows, 1))
    fields[3] = torch.stack([fields[3][row] + row * batch.num_examples for row in range(num_rows)])
    return Batch(*fields, torch.arange(num_rows * batch.num_examples), False)


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad.clone() for name, parameter in module.named_parameters() if parameter.grad is not None}


def edited(model: Path, folder: Path, **settings: Any) -> Path:
    """A copy of a model's folder with other settings in config.json."""
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text()) | settings
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def plain(tiny_model: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(tiny_model).train()


# ---- scores


# case: dpo-loss-09
@pytest.mark.parametrize("attention", BACKENDS)
def test_a_pair_that_shares_its_prompt_scores_like_separate_rows(
    tiny_model: Path, plain: PreTrainedModel, attention: AttentionBackend
) -> None:
    """sum log p(answer | prompt) of 4 answers, and the gradient of their weighted sum: to 1e-6 relative."""
    model = CausalLM(str(tiny_model), attention=attention, chunk_size=3)
    scores = model(collate_pairs(PAIRS))
    found = sum_per_sequence(scores.logps, 2 * scores.document + scores.branch - 1, 4)
    answers = [(pair["prompt_ids"], pair[name]) for pair in PAIRS for name in ("chosen_ids", "rejected_ids")]
    expected = torch.stack([answer_logps(plain, prompt, answer).sum() for prompt, answer in answers])
    assert len(scores.logps) == sum(len(answer) for _, answer in answers)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    weights = torch.tensor([1.0, -2.0, 3.0, -4.0])
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    ours = {name.removeprefix("model."): gradient for name, gradient in gradients(model).items()}
    for name, gradient in gradients(plain).items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-5, atol=1e-5)


# case: mask-01, dpo-loss-12
def test_rows_do_not_depend_on_their_batch_mates(tiny_model: Path, plain: PreTrainedModel) -> None:
    """Chats of 4 and 8 tokens in one padded batch score as each alone, the turn ends (id 2) included."""
    ids = [[1, 50, 60, 2], [1, 51, 61, 71, 2, 81, 91, 2]]
    spans = [[2, 4], [2, 5, 6, 8]]
    model = CausalLM(str(tiny_model))
    batch = collate_chats([{"input_ids": i, "spans": s, "row": 0} for i, s in zip(ids, spans, strict=True)])
    scores = model(batch)
    expected = []
    for row, span in zip(ids, spans, strict=True):
        every = answer_logps(plain, row[:1], row[1:])
        expected += [every[start - 1 : end - 1] for start, end in zip(span[::2], span[1::2], strict=True)]
    torch.testing.assert_close(scores.logps, torch.cat(expected), rtol=1e-5, atol=1e-6)
    assert scores.document.tolist() == [0] * 2 + [1] * 5


# case: data-15
@pytest.mark.parametrize("multiple", [1, 8, 16])
def test_extra_padding_changes_nothing(tiny_model: Path, multiple: int) -> None:
    """Chats of 9 and 3 tokens, rows of 8 or 16 positions: equal loss and count."""
    chats = [{"input_ids": list(range(40, 40 + n)), "spans": [1, n], "row": 0} for n in (9, 3)]
    model = CausalLM(str(tiny_model))
    padded, bare = collate_chats(chats, multiple), collate_chats(chats)
    assert padded.input_ids.shape[1] % multiple == 0
    assert padded.num_tokens() == bare.num_tokens() == 8 + 2
    torch.testing.assert_close(model(padded).logps, model(bare).logps, rtol=1e-6, atol=1e-6)


# case: metrics-12
def test_correct_and_mean_logits_are_those_of_the_same_positions(tiny_model: Path, plain: PreTrainedModel) -> None:
    """arg-max and mean over all logits at the positions with a target; 3 + 5 + 4 + 1 of them."""
    model = CausalLM(str(tiny_model))
    scores = model(collate_pairs(PAIRS[:1]))
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
        assert model(collate_chats([chat])).correct.tolist() == [correct]


# case: mask-02
def test_a_batch_without_targets_scores_nothing_with_a_graph(tiny_model: Path) -> None:
    """0 targets and 0 rows: the sum is 0.0, and all 20 parameters get a gradient of 0."""
    model = CausalLM(str(tiny_model), gradient_checkpointing=True)
    for batch in (collate_chats([{"input_ids": PROMPT, "spans": [], "row": 0}]), collate_chats([]), collate_pairs([])):
        total = model(batch).logps.sum()
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
    first, second, other = ([{"input_ids": ids, "spans": [1, len(ids)], "row": 0}] for ids in
                            ([1, 50, 60, 70, 2], [1, 51, 61, 2], [9, 8, 7, 6, 5]))  # fmt: skip
    alone = torch.cat([model(collate_chats(chat)).logps for chat in (first, second)])
    packed = model(pack(collate_chats(first + second), num_rows)).logps
    changed = model(pack(collate_chats(other + second), num_rows)).logps
    torch.testing.assert_close(packed, alone.repeat(num_rows), rtol=0, atol=1e-5)
    for row in range(num_rows):
        torch.testing.assert_close(changed[7 * row + 4 : 7 * row + 7], alone[4:], rtol=0, atol=1e-5)
        assert (changed[7 * row : 7 * row + 4] - alone[:4]).abs().max() > 1e-3


# case: packing-03
@pytest.mark.parametrize("attention", BACKENDS)
def test_packing_keeps_the_trained_tokens_and_their_mean_loss(tiny_model: Path, attention: AttentionBackend) -> None:
    """3 chats with 2, 5 and 3 trained tokens: 10 either way, mean loss to 1e-5; pairs likewise."""
    model = CausalLM(str(tiny_model), attention=attention)
    spans = [[2, 4], [1, 3, 4, 7], [3, 6]]
    chats = [{"input_ids": list(range(30, 37))[: s[-1]], "spans": s, "row": 0} for s in spans]
    for batch, trained in ((collate_chats(chats), 2 + 2 + 3 + 3), (collate_pairs(PAIRS), 3 + 5 + 4 + 1)):
        packed = pack(batch, 1)
        assert packed.num_targets() == batch.num_targets() == trained
        found, expected = model(packed), model(batch)
        torch.testing.assert_close(found.logps.mean(), expected.logps.mean(), rtol=1e-5, atol=0)
        assert torch.equal(found.document, expected.document)


def test_rows_of_one_document_need_no_mask(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two padded chats: scaled_dot_product_attention gets no mask and is_causal, so its fast kernels stay in use."""
    calls = []
    attend = nn.functional.scaled_dot_product_attention

    def watch(*args: Any, **options: Any) -> Tensor:
        calls.append((options.get("attn_mask"), options.get("is_causal")))
        return attend(*args, **options)

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", watch)
    chats = [{"input_ids": list(range(30, 30 + n)), "spans": [1, n], "row": 0} for n in (9, 4)]
    model = CausalLM(str(tiny_model))
    calls.clear()
    model(collate_chats(chats))
    assert calls == [(None, True)] * 2


@pytest.mark.parametrize("attention", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_masks_fit_under_autocast(tiny_model: Path, attention: AttentionBackend, dtype: torch.dtype) -> None:
    """fp32 weights under bf16 and fp16 autocast: log p within 2 % of fp32, in fp32, and finite gradients."""
    model = CausalLM(str(tiny_model), attention=attention)
    expected = model(collate_pairs(PAIRS)).logps
    with torch.autocast("cpu", dtype):
        found = model(collate_pairs(PAIRS)).logps
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)
    found.sum().backward()
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())


# ---- gradient checkpointing, dtypes, casts


# case: precision-01
def test_checkpointing_runs_every_layer_twice(tiny_model: Path) -> None:
    """2 layers: 2 forwards, and 2 more in the backward pass; without checkpointing 2 and none."""
    for checkpointing, expected in ((True, 4), (False, 2)):
        model = CausalLM(str(tiny_model), gradient_checkpointing=checkpointing)
        calls: list[int] = []
        for layer in model.model.model.layers:
            layer.self_attn.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        loss = model(collate_pairs(PAIRS)).logps.sum()
        assert len(calls) == 2
        loss.backward()
        assert len(calls) == expected


# case: perf-04
def test_checkpointing_gives_the_same_gradients_with_frozen_embeddings(tiny_model: Path) -> None:
    """The input of layer 0 needs no gradient: its weights get theirs all the same, equal to 1e-6."""
    found = []
    for checkpointing in (False, True):
        model = CausalLM(str(tiny_model), gradient_checkpointing=checkpointing)
        model.model.get_input_embeddings().weight.requires_grad_(False)
        model(collate_pairs(PAIRS)).logps.sum().backward()
        found.append(gradients(model))
    assert any(".layers.0." in name for name in found[0])
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-6, atol=1e-6)


# case: precision-02, precision-04
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_weights_load_in_the_dtype_asked_for_and_not_in_the_checkpoints(
    tiny_model: Path, tmp_path: Path, stored: torch.dtype
) -> None:
    """A bf16 or fp16 checkpoint gives fp32 parameters."""
    AutoModelForCausalLM.from_pretrained(tiny_model, dtype=stored).save_pretrained(tmp_path)
    assert {parameter.dtype for parameter in CausalLM(str(tmp_path)).parameters()} == {torch.float32}


@pytest.mark.parametrize("cast", [lambda m: m.to(torch.bfloat16), lambda m: m.bfloat16(), lambda m: m.half()])
def test_a_cast_leaves_the_rotary_frequencies_alone(tiny_model: Path, cast: Any) -> None:
    """theta^(-i/4) for i = 0..3: 1, 0.1, 0.01, 0.001; in bf16 0.1 is 0.10010, 0.2 radians off at position 2,000."""
    model = nn.Sequential(CausalLM(str(tiny_model)))
    cast(model)
    assert next(model.parameters()).dtype in (torch.bfloat16, torch.float16)
    frequencies = model[0].model.model.rotary_emb.inv_freq
    theta = AutoConfig.from_pretrained(tiny_model).rope_parameters["rope_theta"]
    torch.testing.assert_close(frequencies, theta ** -(torch.arange(4) / 4), rtol=1e-6, atol=0)


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
    model(collate_pairs(PAIRS[:1])).logps.sum().backward()
    (answer_logps(plain, PROMPT, CHOSEN).sum() + answer_logps(plain, PROMPT, REJECTED).sum()).backward()
    assert len(list(model.parameters())) == 21
    torch.testing.assert_close(model.model.lm_head.weight.grad, plain.lm_head.weight.grad, rtol=1e-5, atol=1e-5)


def test_equal_weights_have_equal_fingerprints(tiny_model: Path) -> None:
    """Two loads are equal; one weight changed by one bit is not; the attention backend does not matter."""
    first, second = CausalLM(str(tiny_model)), CausalLM(str(tiny_model), attention="eager")
    assert first.fingerprint() == second.fingerprint()
    with torch.no_grad():
        next(first.parameters())[0, 0] += 1e-3
    assert first.fingerprint() != second.fingerprint()


def test_generation_stops_and_does_not_depend_on_batch_mates(tiny_model: Path) -> None:
    """Greedy answers of two prompts together equal each alone, and end before the stop token."""
    model = CausalLM(str(tiny_model)).eval()
    chats = [{"input_ids": [*ids, 5], "spans": [len(ids), len(ids) + 1], "row": 0} for ids in (PROMPT, [1, 9])]
    together = model.generate(collate_chats(chats), 5, [2])
    assert together == [model.generate(collate_chats([chat]), 5, [2])[0] for chat in chats]
    stop = together[0][2]
    assert model.generate(collate_chats(chats[:1]), 5, [stop]) == [together[0][: together[0].index(stop)]]


def test_rows_longer_than_a_sliding_window_are_refused_with_a_mask(tiny_model: Path, tmp_path: Path) -> None:
    """Window 4 and a pair's row of 11: our mask would show more than the model's own."""
    model = CausalLM(str(tiny_model))
    model.config.sliding_window = 4
    with pytest.raises(ValueError, match="reaches back 4"):
        model(collate_pairs(PAIRS))


def test_rows_longer_than_the_positions_are_refused(tiny_model: Path) -> None:
    """1,024 positions, 1,025 tokens with a next one."""
    limit = AutoConfig.from_pretrained(tiny_model).max_position_embeddings
    chat = {"input_ids": [5] * (limit + 2), "spans": [1, 2], "row": 0}
    with pytest.raises(ValueError, match=f"{limit} positions"):
        CausalLM(str(tiny_model))(collate_chats([chat]))


def test_untrained_positions_have_no_target(tiny_model: Path) -> None:
    """The pair's row: 3 shared positions with -100, then 3 and 5 targets, which are the answers."""
    targets = collate_pairs(PAIRS[:1]).targets[0]
    assert targets.tolist() == [IGNORE] * 3 + CHOSEN + REJECTED
