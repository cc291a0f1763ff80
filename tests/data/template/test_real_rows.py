"""Rows of ultrachat_200k and ultrafeedback_binarized in ../shared, with SmolLM2-Instruct's own tokenizer."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from datasets import concatenate_datasets, load_dataset
from transformers import PreTrainedTokenizerBase

from smollit.data.encoding.encoder import Encoder
from smollit.data.encoding.options import EncodeOptions
from smollit.data.formats.detection.detect import detect_format
from smollit.data.formats.types import Kind
from smollit.data.template.template import ChatTemplate, load_template

pytestmark = pytest.mark.shared
Row = dict[str, Any]
EMPTY, EQUAL = "empty response", "identical responses"
END, ASSISTANT = "<|im_end|>", "<|im_start|>assistant\n"
# SmolLM2's template with {% generation %} round each assistant turn and its end: it must print the same text.
TURN = "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
MARKED_TURN = (
    "{% if message['role'] == 'assistant' %}{{ '<|im_start|>assistant\n' }}{% generation %}"
    "{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}" + TURN + "{% endif %}"
)


class Encoded(NamedTuple):
    """Rows of a data set and their examples, side by side."""

    rows: list[Row]
    examples: list[Row]


@pytest.fixture(scope="module")
def template(instruct: PreTrainedTokenizerBase) -> ChatTemplate:
    return load_template(instruct, "auto")


@pytest.fixture(scope="module")
def tokenizer(instruct: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    return instruct


def encode(folder: Path, kind: Kind, template: ChatTemplate, step: int) -> Encoded:
    """Every `step`-th row of all splits, at a length that truncates none."""
    rows = concatenate_datasets([*load_dataset(str(folder)).values()])
    rows = rows.select(range(0, len(rows), step))
    format = detect_format(rows.column_names, rows.to_list()[:5], kind=kind)
    columns = Encoder(template, EncodeOptions(kind, 100_000), format)(rows[:], list(range(len(rows))))
    examples = [dict(zip(columns, each, strict=True)) for each in zip(*columns.values(), strict=True)]
    return Encoded(rows.to_list(), examples)


@pytest.fixture(
    scope="module",
    params=[pytest.param(10, id="every tenth row"), pytest.param(1, id="every row", marks=pytest.mark.slow)],
)
def step(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def chats(shared: Path, template: ChatTemplate, step: int) -> Encoded:
    chats = encode(shared / "data" / "ultrachat_200k", "chat", template, step)
    assert len(chats.rows) == 1390 // step
    assert {example["problem"] for example in chats.examples} == {""}
    return chats


@pytest.fixture(scope="module")
def pairs(shared: Path, template: ChatTemplate, step: int) -> Encoded:
    """Pairs, of which those are dropped that have an empty response, or the same one twice."""
    pairs = encode(shared / "data" / "ultrafeedback_binarized", "preference", template, step)
    assert len(pairs.rows) == 1200 // step
    for row, example in zip(pairs.rows, pairs.examples, strict=True):
        chosen, rejected = row["chosen"][-1]["content"], row["rejected"][-1]["content"]
        problem = EMPTY if not chosen.strip() or not rejected.strip() else EQUAL if chosen == rejected else ""
        assert example["problem"] == problem
    return pairs


def messages_of(turns: list[Row]) -> list[Row]:
    return [{"role": turn["role"], "content": turn["content"]} for turn in turns]


def marked(tokenizer: PreTrainedTokenizerBase, messages: list[Row]) -> tuple[list[int], list[int]]:
    """Ids and assistant mask as transformers makes them, once the marked template prints what the own one prints."""
    text = tokenizer.get_chat_template()
    assert TURN in text
    source = text.replace(TURN, MARKED_TURN)
    render = tokenizer.apply_chat_template
    assert render(messages, chat_template=source, tokenize=False) == render(messages, tokenize=False)
    said = render(messages, chat_template=source, return_dict=True, return_assistant_tokens_mask=True)
    return said["input_ids"], said["assistant_masks"]


def spans_of(example: Row) -> Iterator[tuple[int, int]]:
    return zip(example["spans"][::2], example["spans"][1::2], strict=True)


# case: mask-03
# case: mask-05
# case: mask-08
# case: mask-10
def test_every_assistant_turn_of_every_chat_counts_with_its_end(
    chats: Encoded, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Loss tokens decode to each assistant turn + <|im_end|>; all ids to the chat up to the last one."""
    for row, example in zip(chats.rows, chats.examples, strict=True):
        messages, ids = messages_of(row["messages"]), example["input_ids"]
        turns = [turn["content"] for turn in messages if turn["role"] == "assistant"]
        assert [tokenizer.decode(ids[start:end]) for start, end in spans_of(example)] == [text + END for text in turns]
        rendered = tokenizer.apply_chat_template(messages, tokenize=False)
        assert tokenizer.decode(ids) == rendered[: rendered.rindex(turns[-1]) + len(turns[-1]) + len(END)]


# case: mask-05
def test_nothing_that_a_user_or_the_template_wrote_counts(chats: Encoded, tokenizer: PreTrainedTokenizerBase) -> None:
    """What stands between the loss spans: the system text and the users' turns, each up to the next header."""
    for row, example in zip(chats.rows, chats.examples, strict=True):
        turns = [turn["content"] for turn in row["messages"]]
        edges = [0, *example["spans"]][: len(example["spans"])]
        found = [tokenizer.decode(example["input_ids"][a:b]) for a, b in zip(edges[::2], edges[1::2], strict=True)]
        assert len(found) == len(turns[::2])
        for text, question in zip(found, turns[::2], strict=True):
            assert text.endswith(f"<|im_start|>user\n{question}{END}\n{ASSISTANT}")


# promise: loss-tokens
# case: mask-03
def test_loss_tokens_of_chats_are_those_of_transformers_mask(
    chats: Encoded, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Chat by chat: the same ids too, so no turn of these chats meets the boundary rule."""
    for row, example in zip(chats.rows, chats.examples, strict=True):
        ids, mask = marked(tokenizer, messages_of(row["messages"]))
        assert ids[: len(example["input_ids"])] == example["input_ids"]
        assert {position for position, counts in enumerate(mask) if counts} == {
            position for start, end in spans_of(example) for position in range(start, end)
        }


# case: template-01
# case: data-03
def test_pairs_decode_to_the_rendered_chats(pairs: Encoded, tokenizer: PreTrainedTokenizerBase) -> None:
    """Prompt + response is the rendered chat without its last newline; the prompt is inference's."""
    for row, example in zip(pairs.rows, pairs.examples, strict=True):
        if example["problem"]:
            continue
        prompt = messages_of(row["chosen"][:-1])
        assert example["prompt_ids"] == tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"]
        for name in ("chosen", "rejected"):
            messages = messages_of(row[name])
            rendered = tokenizer.apply_chat_template(messages, tokenize=False)
            assert tokenizer.decode(example["prompt_ids"] + example[f"{name}_ids"]) + "\n" == rendered
            assert tokenizer.decode(example[f"{name}_ids"]) == messages[-1]["content"] + END


def test_loss_tokens_of_pairs_are_those_of_transformers_mask(
    pairs: Encoded, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Response by response: the ids of the whole chat, and the number of loss tokens. None meets the boundary rule."""
    for row, example in zip(pairs.rows, pairs.examples, strict=True):
        for name in ("chosen", "rejected") if not example["problem"] else ():
            ids, mask = marked(tokenizer, messages_of(row[name]))
            assert ids[:-1] == example["prompt_ids"] + example[f"{name}_ids"]
            assert sum(mask[len(example["prompt_ids"]) :]) == len(example[f"{name}_ids"])


# case: data-02
def test_the_boundary_rule_where_it_matters(template: ChatTemplate, tokenizer: PreTrainedTokenizerBase) -> None:
    """Two spaces after the header's newline: jointly one token `ĊĠ`, 3805, which no prompt ends with at inference.

    docs/loss_tokens.md shows these ids.
    """
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "  yes"}]
    encoder = Encoder(template, EncodeOptions("chat", 100), detect_format(["messages"], [], kind="chat"))
    (ids,), ((start, end),) = (encoder({"messages": [messages]}, [0])[name] for name in ("input_ids", "spans"))
    assert ids[:start] == tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True)["input_ids"]
    assert (ids[start - 4 : start], ids[start:end]) == ([1, 520, 9531, 198], [216, 9805, 2])
    assert marked(tokenizer, messages)[0][-7:] == [1, 520, 9531, 3805, 9805, 2, 198]


# case: template-08
def test_the_articles_markers_are_pieces_for_smollm(tokenizer: PreTrainedTokenizerBase) -> None:
    """Ids of docs/loss_tokens.md: 5 + 6 + 3 pieces, and ChatML's two markers are one token each."""
    pieces = {marker: tokenizer.encode(marker) for marker in ("<|user|>", "<|assistant|>", "</s>")}
    assert pieces == {
        "<|user|>": [44, 108, 4093, 108, 46],
        "<|assistant|>": [44, 108, 520, 9531, 108, 46],
        "</s>": [9617, 99, 46],
    }
    assert [tokenizer.encode(marker) for marker in ("<|im_start|>", END)] == [[1], [2]]
