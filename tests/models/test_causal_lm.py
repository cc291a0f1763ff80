"""CausalLM against plain transformers: full logits and log_softmax, one unpadded sequence for each response."""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from smollit.batch import Batch
from smollit.data.batching.collate import collate, collate_chats, collate_pairs, response_positions, unpacked
from smollit.functional.attention import AttentionBackend
from smollit.functional.scores import TokenScores
from smollit.models.causal_lm import CausalLM
from smollit.models.generation import Sampling, until_stop
from smollit.models.recompute import GradientCheckpointing
from tests.conftest import Example, batch_of, chats_of, edited

TRAINED_ON_CPU: tuple[AttentionBackend, ...] = ("varlen", "documents", "sdpa", "eager")
# flex_attention has no backward pass on a CPU: tests/gpu trains it
BACKENDS: tuple[AttentionBackend, ...] = (*TRAINED_ON_CPU, "flex_attention")
PROMPT, CHOSEN, REJECTED = [1, 50, 60, 70], [80, 90, 2], [81, 91, 101, 111, 2]
PAIRS: list[Example] = [
    {"prompt_ids": PROMPT, "chosen_ids": CHOSEN, "rejected_ids": REJECTED, "row": 0},
    {"prompt_ids": [1, 55], "chosen_ids": [65, 75, 85, 2], "rejected_ids": [2], "row": 1},
]
RESPONSES = [(pair["prompt_ids"], pair[name]) for pair in PAIRS for name in ("chosen_ids", "rejected_ids")]


def plain_logps(model: PreTrainedModel, prompt: list[int], response: list[int]) -> Tensor:
    """log p of each response token: one sequence, no padding, all logits, log_softmax."""
    logits = model(input_ids=torch.tensor([prompt + response]), use_cache=False).logits[0].float()
    logps = torch.log_softmax(logits, dim=1)
    return torch.stack([logps[len(prompt) + index - 1, token] for index, token in enumerate(response)])


def score(model: CausalLM, batch: Batch, **options: Any) -> TokenScores:
    """The scores, with gradient where the backend has one on this machine."""
    with torch.set_grad_enabled(model.attention in TRAINED_ON_CPU):
        return model(batch, **options)


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad.clone() for name, parameter in module.named_parameters() if parameter.grad is not None}


@pytest.fixture(autouse=True)
def _flex_attention_without_its_compiler() -> Iterator[None]:
    """It would compile for a minute for each shape; uncompiled it computes the same."""
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


@pytest.fixture
def plain(tiny_model: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(tiny_model).train()


# ---- scores


def random_responses(seed: int) -> list[list[Example]]:
    """Two sequences with two examples and one, of 1 to 3 responses to a prompt of 1 to 5 tokens."""
    rng = random.Random(seed)

    def ids(length: int) -> list[int]:
        return [rng.randrange(3, 2000) for _ in range(length)]

    examples = [
        {"prompt_ids": ids(rng.randint(1, 5)), "responses": [ids(rng.randint(1, 4)) for _ in range(count)], "row": 0}
        for count in (3, rng.randint(1, 3), rng.randint(1, 3))
    ]
    return [examples[:2], examples[2:]]


# promise: separate-documents
# case: dpo-loss-09, packing-01
@pytest.mark.parametrize("attention", BACKENDS)
@pytest.mark.parametrize("seed", range(3))
def test_responses_that_share_a_prompt_are_scored_like_separate_sequences(
    tiny_model: Path, plain: PreTrainedModel, attention: AttentionBackend, seed: int
) -> None:
    """Random packed documents with up to 3 responses: sums of log p to 1e-5, and the gradients of the sums, weighted
    with 1, -2, 3, ..., to 1e-5, equal those of each prompt + response alone. So no response attends to another one, or
    to another document."""
    model = CausalLM(str(tiny_model), attention=attention, chunk_size=3)
    sequences = random_responses(seed)
    batch = collate(sequences, lambda example: response_positions(example["prompt_ids"], example["responses"]))
    sums = score(model, batch._replace(pairs=torch.zeros(0, 2, dtype=torch.long))).sums
    alone = [(e["prompt_ids"], response) for examples in sequences for e in examples for response in e["responses"]]
    expected = torch.stack([plain_logps(plain, *one).sum() for one in alone])
    torch.testing.assert_close(sums, expected, rtol=1e-5, atol=1e-5)
    if attention in TRAINED_ON_CPU:
        weights = torch.tensor([(-1) ** index * (index + 1.0) for index in range(len(alone))])
        (sums * weights).sum().backward()
        (expected * weights).sum().backward()
        torch.testing.assert_close(gradients(model.model), gradients(plain), rtol=1e-5, atol=2e-5)


# case: dpo-loss-09
@pytest.mark.parametrize("pairs", [PAIRS[:1], PAIRS])
def test_sums_and_their_gradients_are_those_of_the_tokens(tiny_model: Path, pairs: list[Example]) -> None:
    """One pair (the head in one pass) and two (the logits computed twice): the sums over each response, chosen before
    rejected, and gradients of -1, 2, -3 and 4 times the sums equal those by way of every token's log p."""
    model, batch = CausalLM(str(tiny_model), chunk_size=3), batch_of(pairs)
    weights = torch.tensor([-1.0, 2.0, -3.0, 4.0])[: 2 * len(pairs)]
    tokens = model(batch, token_gradients=True)
    parts = tokens.logps.split([len(pair[name]) for pair in pairs for name in ("chosen_ids", "rejected_ids")])
    expected = torch.stack([part.sum() for part in parts])
    (expected * weights).sum().backward()
    before = gradients(model)
    model.zero_grad()
    scores = model(batch)
    (scores.sums * weights).sum().backward()
    for sums in (scores.sums, tokens.sums, scores.per_response(scores.logps)):
        torch.testing.assert_close(sums, expected, rtol=1e-6, atol=1e-6)
    assert not scores.logps.requires_grad
    torch.testing.assert_close(gradients(model), before, rtol=1e-5, atol=1e-6)


# case: mask-01, dpo-loss-12, packing-01
@pytest.mark.parametrize("attention", BACKENDS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_chats_do_not_depend_on_the_rest_of_the_batch(
    tiny_model: Path,
    plain: PreTrainedModel,
    attention: AttentionBackend,
    training: bool,
    checkpointing: bool,
    packed: bool,
) -> None:
    """Chats of 4 and 8 tokens, padded or packed, score as each does alone, the turn ends (id 2) included."""
    ids, spans = [[1, 50, 60, 2], [1, 51, 61, 71, 2, 81, 91, 2]], [[2, 4], [2, 5, 6, 8]]
    model = CausalLM(str(tiny_model), attention=attention, gradient_checkpointing=checkpointing).train(training)
    chats = [{"input_ids": i, "spans": s, "row": 0} for i, s in zip(ids, spans, strict=True)]
    scores, expected = score(model, batch_of(chats, packed=packed)), []
    for tokens, span in zip(ids, spans, strict=True):
        every = plain_logps(plain, tokens[:1], tokens[1:])
        expected += [every[start - 1 : end - 1] for start, end in zip(span[::2], span[1::2], strict=True)]
    torch.testing.assert_close(scores.logps, torch.cat(expected).detach(), rtol=1e-5, atol=1e-5)


# case: data-15
@pytest.mark.parametrize("attention", BACKENDS)
@pytest.mark.parametrize("multiple", [8, 16])
def test_extra_padding_changes_nothing(tiny_model: Path, attention: AttentionBackend, multiple: int) -> None:
    """Chats of 9 and 3 tokens, and pairs, each in a separate sequence and packed: equal log-probabilities."""
    chats, model = chats_of(list(range(40, 49)), [40, 41, 42]), CausalLM(str(tiny_model), attention=attention)
    for collated, sequences in (
        (collate_chats, unpacked(chats)),
        (collate_chats, [chats]),
        (collate_pairs, unpacked(PAIRS)),
        (collate_pairs, [PAIRS]),
    ):
        padded, bare = collated(sequences, multiple), collated(sequences)
        assert padded.input_ids.shape[1] % multiple == 0
        torch.testing.assert_close(score(model, padded).logps, score(model, bare).logps, rtol=1e-6, atol=1e-6)


# case: metrics-12
def test_correct_and_mean_logits_are_those_of_the_loss_tokens(tiny_model: Path, plain: PreTrainedModel) -> None:
    """arg-max and mean over all logits at the positions with a label, 3 + 5 of them; only where requested."""
    model, batch = CausalLM(str(tiny_model)), batch_of(PAIRS[:1])
    scores, hits, means = model(batch, correct=True, mean_logits=True), [], []
    for response in (CHOSEN, REJECTED):
        logits = plain(input_ids=torch.tensor([PROMPT + response])).logits[0, len(PROMPT) - 1 : -1]
        hits += (logits.argmax(dim=1) == torch.tensor(response)).tolist()
        means.append(logits.mean(dim=1))
    assert scores.correct.tolist() == hits
    torch.testing.assert_close(scores.mean_logits, torch.cat(means).detach(), rtol=1e-4, atol=1e-6)
    assert model(batch).correct is model(batch).mean_logits is None
    best = plain(input_ids=torch.tensor([PROMPT])).logits[0, -1].argmax().item()
    predicted = [{"input_ids": [*PROMPT, token], "spans": [4, 5], "row": 0} for token in (best, (best + 1) % 2048)]
    assert model(batch_of(predicted), correct=True).correct.tolist() == [True, False]


# case: mask-02
@pytest.mark.parametrize("attention", TRAINED_ON_CPU)
def test_a_batch_without_loss_tokens_has_a_graph_with_zero_gradients(
    tiny_model: Path, attention: AttentionBackend
) -> None:
    """A chat without a loss span, and no examples at all: the sum is 0.0, and all 20 parameters get a gradient of 0."""
    model = CausalLM(str(tiny_model), attention=attention, gradient_checkpointing=True)
    untrained = batch_of([{"input_ids": PROMPT, "spans": [], "row": 0}])
    for batch in (untrained, collate_chats([]), collate_pairs([])):
        total = model(batch).sums.sum()
        assert total.item() == 0.0
        total.backward()
        assert len(gradients(model)) == 20
        assert all(gradient.abs().max() == 0 for gradient in gradients(model).values())


# case: packing-03
@pytest.mark.parametrize("attention", TRAINED_ON_CPU)
@pytest.mark.parametrize("kind", ["chats", "pairs"])
def test_packing_keeps_loss_tokens_mean_loss_and_gradients(
    tiny_model: Path, attention: AttentionBackend, kind: str
) -> None:
    """3 chats with 4 + 3 + 4 loss tokens, or 2 pairs with 3 + 5 + 4 + 1: mean loss and gradients to 1e-5."""
    chats = chats_of([1, 50, 60, 70, 2], [1, 51, 61, 2], [9, 8, 7, 6, 5])
    examples, count = (chats, 11) if kind == "chats" else (PAIRS, 13)
    losses, found = [], []
    for packed in (True, False):
        model, batch = CausalLM(str(tiny_model), attention=attention), batch_of(examples, packed=packed)
        assert batch.num_loss_tokens == count
        losses.append(model(batch).sums.sum() / count)
        losses[-1].backward()
        found.append(gradients(model))
    torch.testing.assert_close(*losses, rtol=1e-5, atol=0)
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


# ---- attention


# case: packing-05
def test_rows_refuse_packed_sequences(tiny_model: Path) -> None:
    """No silent fallback: the error names the setting."""
    with pytest.raises(ValueError, match=r"this batch has packed sequences: set `data.packing: off`"):
        CausalLM(str(tiny_model), attention="rows")(batch_of(PAIRS, packed=True))


@pytest.mark.parametrize("kind", ["chats", "pairs"])
def test_documents_computes_no_padding(tiny_model: Path, kind: str) -> None:
    """Sequences of 8 + 2 and 8 positions (pairs: 11 + 6 and 11) padded to a multiple of 64: every linear layer of every
    decoder layer gets [1, sum of lengths]; the empty batch has one position."""
    sizes: set[torch.Size] = set()
    model = CausalLM(str(tiny_model))
    for layer in model.model.model.layers:
        for part in layer.modules():
            if isinstance(part, nn.Linear):
                part.register_forward_hook(lambda _, inputs, output: sizes.add(inputs[0].shape[:2]))
    examples, collated, total = (
        (PAIRS, collate_pairs, 11 + 6 + 11)
        if kind == "pairs"
        else (chats_of(list(range(9)), [7, 8, 9]), collate_chats, 8 + 2 + 8)
    )
    model(collated([examples, examples[:1]], 64))
    assert sizes == {torch.Size([1, total])}
    sizes.clear()
    model(collated([]))
    assert sizes == {torch.Size([1, 1])}


@pytest.mark.parametrize(("attention", "num_calls"), [("sdpa", 2), ("documents", 2 * 2)])
def test_sequences_of_one_chat_need_no_mask(tiny_model: Path, attention: AttentionBackend, num_calls: int) -> None:
    """Two padded chats: scaled_dot_product_attention gets no mask and is_causal, so that its fast kernels are used: one
    call per layer for both chats (sdpa), or per layer and chat (documents)."""
    calls: list[tuple[Any, Any]] = []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is nn.functional.scaled_dot_product_attention:
                calls.append((kwargs.get("attn_mask"), kwargs.get("is_causal")))
            return func(*args, **(kwargs or {}))

    model = CausalLM(str(tiny_model), attention=attention)
    with Watch():
        model(batch_of(chats_of(list(range(30, 39)), [30, 31, 32, 33])))
    assert calls == [(None, True)] * num_calls


@pytest.mark.parametrize("attention", TRAINED_ON_CPU)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_scores_in_fp32(tiny_model: Path, attention: AttentionBackend, dtype: torch.dtype) -> None:
    """fp32 weights under bf16 and fp16 autocast: log p within 2 % of fp32, in fp32 like the mean logits, and finite
    gradients."""
    model = CausalLM(str(tiny_model), attention=attention)
    expected = model(batch_of(PAIRS), mean_logits=True)
    with torch.autocast("cpu", dtype):
        found = model(batch_of(PAIRS), mean_logits=True)
    assert found.logps.dtype == found.sums.dtype == found.mean_logits.dtype == torch.float32
    torch.testing.assert_close(found.logps, expected.logps, rtol=0.02, atol=0.02)
    found.sums.sum().backward()
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())


# ---- gradient checkpointing


# case: perf-04
@pytest.mark.parametrize("attention", TRAINED_ON_CPU)
@pytest.mark.parametrize("checkpointing", [True, "selective"])
@pytest.mark.parametrize("frozen", [True, False])
def test_checkpointing_gives_the_same_gradients(
    tiny_model: Path, attention: AttentionBackend, checkpointing: GradientCheckpointing, frozen: bool
) -> None:
    """Packed pairs, to 1e-6; also with frozen embeddings, where the input of layer 0 needs no gradient."""
    found = []
    for setting in (False, checkpointing):
        model = CausalLM(str(tiny_model), attention=attention, gradient_checkpointing=setting)
        model.model.get_input_embeddings().weight.requires_grad_(not frozen)
        model(batch_of(PAIRS, packed=True)).sums.sum().backward()
        found.append(gradients(model))
    assert any(".layers.0." in name for name in found[0])
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-6)


# case: precision-01
@pytest.mark.parametrize("attention", TRAINED_ON_CPU)
def test_checkpointing_repeats_layers_and_selective_not_their_matrix_products(
    tiny_model: Path, attention: AttentionBackend
) -> None:
    """2 layers: 2 forwards, and 2 more in the backward pass with checkpointing. Floating-point operations of matrix
    products: as many with `selective` as without, and fewer than with whole layers recomputed."""
    operations, entered = {}, {}
    for setting in (True, "selective", False):
        calls: list[int] = []
        model = CausalLM(str(tiny_model), attention=attention, gradient_checkpointing=setting)  # type: ignore[arg-type]
        for layer in model.model.model.layers:
            layer.self_attn.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        with FlopCounterMode(display=False) as counter:
            model(batch_of(PAIRS, packed=True)).sums.sum().backward()
        operations[setting], entered[setting] = counter.get_flop_counts()["Global"][torch.ops.aten.mm], len(calls)
    assert operations[True] > operations["selective"] == operations[False]
    assert entered == {True: 4, "selective": 4, False: 2}


# ---- weights, dtypes, settings


# case: precision-02, precision-04
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_weights_load_in_the_requested_dtype_and_not_in_the_checkpoints(
    tiny_model: Path, tmp_path: Path, stored: torch.dtype
) -> None:
    """A bf16 or fp16 checkpoint gives fp32 parameters."""
    AutoModelForCausalLM.from_pretrained(tiny_model, dtype=stored).save_pretrained(tmp_path)
    assert {parameter.dtype for parameter in CausalLM(str(tmp_path)).parameters()} == {torch.float32}


def test_a_cast_leaves_the_rotary_frequencies_alone(tiny_model: Path) -> None:
    """Cast as a part of another module, as Lightning does for bf16-true: log p of 512 tokens equals, to the bit, that
    of weights loaded in bf16. With frequencies in bf16, 0.1 would be 0.10010: 0.05 radians off at position 500."""
    chat = batch_of(chats_of([1, 50, 60, 70] * 128))
    expected = CausalLM(str(tiny_model), dtype=torch.bfloat16)(chat).logps
    model = CausalLM(str(tiny_model))
    nn.Sequential(model).to(torch.bfloat16)
    assert next(model.parameters()).dtype == torch.bfloat16
    assert torch.equal(model(chat).logps, expected)


def test_random_weights_need_only_the_configuration(tmp_path: Path, tiny_model: Path) -> None:
    """config.json alone, bf16: 20 parameters, all bf16, in train mode."""
    shutil.copy(tiny_model / "config.json", tmp_path)
    model = CausalLM(str(tmp_path), weights="random", dtype=torch.bfloat16)
    assert [parameter.dtype for parameter in model.parameters()] == [torch.bfloat16] * 20
    assert model.training
    assert model.model.training


def test_dropout_is_the_models_own_unless_set(tiny_model: Path, tmp_path: Path) -> None:
    """config.json says 0.3: two passes in train mode differ. `dropout=0` turns it off: they are equal."""
    folder = str(edited(tiny_model, tmp_path / "model", attention_dropout=0.3))
    for dropout, is_equal in ((None, False), (0.0, True)):
        model = CausalLM(folder, dropout=dropout)
        assert torch.equal(model(batch_of(PAIRS)).logps, model(batch_of(PAIRS)).logps) == is_equal


def test_an_untied_head_has_gradients_of_its_own(tiny_model: Path, tmp_path: Path) -> None:
    """tie_word_embeddings false: 21 parameters, and the head's gradient is that of plain transformers."""
    config = AutoConfig.from_pretrained(tiny_model)
    config.tie_word_embeddings = False
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    model, plain = CausalLM(str(tmp_path)), AutoModelForCausalLM.from_pretrained(tmp_path)
    model(batch_of(PAIRS[:1])).sums.sum().backward()
    torch.stack([plain_logps(plain, PROMPT, response).sum() for response in (CHOSEN, REJECTED)]).sum().backward()
    assert len(list(model.parameters())) == 21
    torch.testing.assert_close(model.model.lm_head.weight.grad, plain.lm_head.weight.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("attention", BACKENDS)
def test_generation_stops_and_does_not_depend_on_the_rest_of_the_batch(
    tiny_model: Path, attention: AttentionBackend
) -> None:
    """Greedy responses to two prompts together equal each alone, and end before the stop token; scores afterwards are
    equal to those before."""
    model = CausalLM(str(tiny_model), attention=attention).eval()
    before = score(model, batch_of(PAIRS, packed=True)).logps
    chats = [{"input_ids": [*ids, 5], "spans": [len(ids), len(ids) + 1], "row": 0} for ids in (PROMPT, [1, 9])]
    together = model.generate(batch_of(chats), 5, [2])
    assert together == [model.generate(batch_of([chat]), 5, [2])[0] for chat in chats]
    stop = together[0][2]
    assert model.generate(batch_of(chats[:1]), 5, [stop]) == [together[0][: together[0].index(stop)]]
    assert torch.equal(score(model, batch_of(PAIRS, packed=True)).logps, before)


@pytest.mark.slow
def test_long_responses_are_those_of_transformers_though_ended_ones_leave_the_batch(tiny_model: Path) -> None:
    """Greedy responses of 300 tokens, and until a stop token that comes early in one of them, against transformers'
    own cache, one prompt at a time; sampled ones with 40 stop tokens, each alone."""
    model, plain = CausalLM(str(tiny_model)).eval(), AutoModelForCausalLM.from_pretrained(tiny_model)
    prompts = [PROMPT, [1, 9], [7, 7, 8, 30, 4]]
    chats = [{"input_ids": [*ids, 5], "spans": [len(ids), len(ids) + 1], "row": row} for row, ids in enumerate(prompts)]
    options = {"max_new_tokens": 300, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    expected = [plain.generate(torch.tensor([ids]), **options)[0, len(ids) :].tolist() for ids in prompts]
    assert model.generate(batch_of(chats), 300, []) == expected
    stop = next(token for token in expected[0] if sum(token in response for response in expected) < 3)
    assert model.generate(batch_of(chats), 300, [stop]) == [until_stop(response, [stop]) for response in expected]
    stops = list(range(40))
    drawn = model.generate(batch_of(chats), 300, stops, temperature=1.0)
    assert drawn == [model.generate(batch_of([chat]), 300, stops, temperature=1.0)[0] for chat in chats]
    assert len({len(response) for response in drawn}) == 3


# case: B15
def test_a_sampled_response_depends_on_its_row_and_the_seed_alone(tiny_model: Path) -> None:
    """Rows 3 and 4 together and alone: the same responses; another row, or seed, of the same prompt gives others. The
    global random state is not touched."""
    model, state = CausalLM(str(tiny_model)).eval(), torch.get_rng_state()

    def responses(*rows: int, seed: int = 1) -> list[list[int]]:
        chats = [{"input_ids": [*PROMPT, 5], "spans": [len(PROMPT), len(PROMPT) + 1], "row": row} for row in rows]
        return model.generate(batch_of(chats), 8, [2], temperature=1.0, seed=seed)

    assert responses(3, 4) == [*responses(3), *responses(4)]
    assert len({tuple(response) for response in (*responses(3, 4), *responses(3, seed=2))}) == 3
    assert torch.equal(torch.get_rng_state(), state)


def test_samples_have_the_probabilities_of_the_temperature() -> None:
    """Probabilities .5, .3 and .2 at temperature 2: their roots, normalized; 4,000 draws, each frequency within .03."""
    probabilities = torch.tensor([0.5, 0.3, 0.2])
    sampling = Sampling(2.0, range(4000), torch.device("cpu"))
    drawn = sampling(torch.empty(0), probabilities.log().expand(4000, 3)).argmax(dim=1)  # type: ignore[arg-type]
    frequencies = torch.bincount(drawn, minlength=3) / 4000
    torch.testing.assert_close(frequencies, probabilities.sqrt() / probabilities.sqrt().sum(), atol=0.03, rtol=0)


def test_examples_may_be_as_long_as_the_positions_and_packed_sequences_longer(tiny_model: Path) -> None:
    """1,024 positions: 1,025 tokens with a next one are refused; two packed chats of 600 score as each does alone."""
    limit = AutoConfig.from_pretrained(tiny_model).max_position_embeddings
    model, chat = CausalLM(str(tiny_model)), chats_of([5, 6, 7] * 200)
    with pytest.raises(ValueError, match=f"{limit} positions"):
        model(batch_of(chats_of([5] * (limit + 2))))
    with torch.no_grad():
        packed = model(batch_of(chat * 2, packed=True)).logps
        torch.testing.assert_close(packed[599:], model(batch_of(chat)).logps)
