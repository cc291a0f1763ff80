"""From a row to scores: a pair that shares its prompt scores as two sequences through transformers' full logits."""

import json
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from smollit.data.batching.collate import collate_pairs, unpacked
from smollit.data.encoding.encoder import Encoder
from smollit.data.encoding.options import EncodeOptions
from smollit.data.formats.detection.detect import detect_format
from smollit.data.sources.readers import RAW
from smollit.data.template.template import load_template
from smollit.functional.attention import AttentionBackend
from smollit.models.causal_lm import CausalLM

BACKENDS: tuple[AttentionBackend, ...] = ("documents", "sdpa")  # those that train on a CPU and are for training
Turn = dict[str, str]
Pair = tuple[list[Turn], str, str]

PIECES = [
    "a",
    "The",
    " the",
    "\n",
    "\n\n",
    " ",
    "  ",
    "\t",
    "é",
    "日本",
    "👍🏽",
    "\u200d",
    "user",
    "?",
    "1",
    "{{ x }}",
    "</s>",
]
texts = st.lists(st.sampled_from(PIECES) | st.text(st.characters(exclude_categories=["Cs"]), max_size=3), max_size=6)
texts = texts.map("".join).filter(lambda text: "<|" not in text)
responses = texts.filter(lambda text: bool(text.strip()))


@st.composite
def prompts(draw: st.DrawFn) -> list[Turn]:
    """Perhaps a system text, some turns, and a question or a tool's result at the end."""
    turns = [{"role": "system", "content": draw(texts)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(0, 2))):
        turns += [{"role": "user", "content": draw(texts)}, {"role": "assistant", "content": draw(responses)}]
        if draw(st.booleans()):
            turns += [{"role": "tool", "content": draw(texts)}, {"role": "assistant", "content": draw(responses)}]
    return [*turns, {"role": draw(st.sampled_from(["user", "tool"])), "content": draw(texts)}]


pairs = st.tuples(prompts(), responses, responses).filter(lambda pair: pair[1] != pair[2])


class Setup(NamedTuple):
    """One set of weights: our models by attention backend, transformers' own, the encoder and the tokenizer."""

    models: dict[AttentionBackend, CausalLM]
    plain: PreTrainedModel
    encoder: Encoder
    tokenizer: PreTrainedTokenizerBase


@pytest.fixture(scope="module")
def setup(tiny_model: Path, tiny_tokenizer: PreTrainedTokenizerBase) -> Setup:
    template = load_template(tiny_tokenizer, "chatml")
    form = detect_format(["prompt", "chosen", "rejected"], [], kind="preference")
    return Setup(
        {name: CausalLM(str(tiny_model), attention=name, chunk_size=7) for name in BACKENDS},
        AutoModelForCausalLM.from_pretrained(tiny_model),
        Encoder(template, EncodeOptions("preference", 2048), form),
        tiny_tokenizer,
    )


def encode(setup: Setup, rows: list[Pair]) -> list[dict[str, Any]]:
    """Examples, as JSON Lines give them."""
    lines = [json.dumps({"prompt": prompt, "chosen": one, "rejected": other}) for prompt, one, other in rows]
    columns = setup.encoder({RAW: lines}, list(range(len(lines))))
    assert set(columns["problem"]) == {""}, columns["detail"]
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def expected_logps(setup: Setup, pair: Pair) -> list[list[float]]:
    """Log-probabilities of the tokens of both responses: written out by hand, two sequences, no mask, all logits."""
    prompt, *both = pair
    text = "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in prompt)
    before = setup.tokenizer.encode(text + "<|im_start|>assistant\n", add_special_tokens=False)
    found = []
    for response in both:
        ids = setup.tokenizer.encode(response + "<|im_end|>", add_special_tokens=False)
        with torch.no_grad():
            logits = setup.plain(input_ids=torch.tensor([before + ids]), use_cache=False).logits[0].double()
        logps = torch.log_softmax(logits, dim=1)
        found.append([float(logps[len(before) + place - 1, token]) for place, token in enumerate(ids)])
    return found


def scored(setup: Setup, rows: list[Pair], backend: AttentionBackend, packed: bool) -> tuple[Tensor, Tensor]:
    """Log-probability of every response token, and the sums [2 * pairs]: chosen, rejected, chosen, ..."""
    examples = encode(setup, rows)
    batch = collate_pairs([examples] if packed else unpacked(examples))
    with torch.no_grad():
        scores = setup.models[backend](batch)
    return scores.logps, scores.sums


QUIET = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


# case: data-02
# case: dpo-loss-09
@QUIET
@given(rows=st.lists(pairs, min_size=1, max_size=3), packed=st.booleans())
@example(rows=[([{"role": "user", "content": "Answer: "}], "yes", "no")], packed=False)
@example(rows=[([{"role": "user", "content": "q"}], "  two spaces ", "\nno\n")] * 2, packed=True)
@example(rows=[([{"role": "user", "content": ""}], "the", "the same start")], packed=True)
def test_pairs_score_as_separate_sequences(setup: Setup, rows: list[Pair], packed: bool) -> None:
    """Each token of each response, and the sums, on both backends; packed in one sequence or one each."""
    expected = [logps for row in rows for logps in expected_logps(setup, row)]
    for backend in BACKENDS:
        logps, sums = scored(setup, rows, backend, packed)
        torch.testing.assert_close(logps, torch.tensor([*chain(*expected)]), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(sums, torch.tensor([*map(sum, expected)]), rtol=1e-5, atol=1e-5)
