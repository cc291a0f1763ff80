"""Reasoning and calls that a data set writes into texts are read as the template reads them; rendering decides."""

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from smollit.data import ChatDataModule, PreferenceDataModule
from tests.conftest import TINY
from tests.data.conftest import Row, assistant, pair_texts, ready, spans, user

# As Qwen3: reasoning is printed after the last user turn only, from a key or from the content before `</think>`.
THINKS = (
    "{% set ns = namespace(last='') %}{% for m in messages if m.role == 'user' %}{% set ns.last = m.content %}"
    "{% endfor %}{% set ns.after = false %}{% for m in messages %}{% set r, c = m.reasoning_content or '', m.content %}"
    "{% if '</think>' in c %}{% set r = c.split('</think>')[0].split('<think>')[-1].strip('\\n') %}"
    "{% set c = c.split('</think>')[-1].lstrip('\\n') %}{% endif %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and ns.after %}<think>\n{{ r }}\n</think>\n\n{% endif %}{{ c }}CALLS<|im_end|>\n"
    "{% set ns.after = ns.after or m.content == ns.last %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QUOTES = "{% for t in m.tool_calls or [] %}<call>{{ t.function.name }} {{ t.function.arguments | tojson }}{% endfor %}"
TOOL = {"type": "function", "function": {"name": "add", "parameters": {}}}
CHATML = (files("smollit.data.template") / "chatml.jinja").read_text(encoding="utf-8")
DONE = "three.<|im_end|>"
Read = Callable[..., ChatDataModule]


@pytest.fixture
def read(tmp_path: Path, write: Callable[..., str]) -> Read:
    """A data module of rows, with <think> and </think> as single tokens that are not special, as Qwen3 has them."""
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.save_pretrained(tmp_path / "tokenizer")

    def of(rows: list[Row], template: str = THINKS.replace("CALLS", ""), **options: Any) -> ChatDataModule:
        (tmp_path / "mine.jinja").write_text(template)
        given = {"tokenizer_name": str(tmp_path / "tokenizer"), "chat_template": str(tmp_path / "mine.jinja")}
        return ready(tmp_path, write(rows), **given | options)

    return of


@pytest.mark.parametrize("more", [[], [user("and?")], [user("and?"), assistant("<think>\nOr\n</think>\n\nB.")]])
def test_reasoning_in_the_content_is_the_same_as_in_a_key(read: Read, more: list[Row]) -> None:
    """The tokens are those of transformers' text through the last response: `<think>` is one token, and a user turn
    after it, which is not used, does not remove the reasoning. What an earlier turn loses is named."""
    question = user("why <think>?")
    written = [question, assistant("<think>\nHm\n</think>\n\nA."), *more]
    apart = [question, assistant("A.", reasoning_content="Hm"), *more]
    module = read([{"messages": written}, {"messages": apart}], control_text="escape")
    first, second = module.examples["train"].rows
    assert (first["input_ids"], first["spans"]) == (second["input_ids"], second["spans"])
    tokenizer, chat = module.template.tokenizer, written[:2] if len(more) < 2 else written
    text = tokenizer.apply_chat_template(chat, chat_template=module.template.source, tokenize=False)
    assert tokenizer.decode(first["input_ids"]) == text.removesuffix("\n")
    thinks = tokenizer.convert_tokens_to_ids("<think>")
    assert first["input_ids"].count(thinks) == 1, "the model's own, and not the user's"
    last = spans(module)[0][-1]
    assert last == (
        "<think>\nOr\n</think>\n\nB.<|im_end|>" if len(more) == 2 else "<think>\nHm\n</think>\n\nA.<|im_end|>"
    )
    report = module.reports["train"]
    assert report.trailing == (2 if len(more) == 1 else 0)
    assert report.unprinted == ({"reasoning_content of earlier turns": 2} if len(more) == 2 else {})


# As DeepSeek-R1, which cuts reasoning out of all turns; as Nemotron 3, out of earlier ones, with a line end of its own.
CUTS = (
    "{% for m in messages %}{% set c = m.content %}{% if m.role == 'assistant' %}{% set c = c.split('</think>')[-1] %}"
    "{% endif %}<{{ m.role }}>{{ c }}<|im_end|>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
CUTS_EARLIER = (
    "{% for m in messages %}{% set c = m.content %}{% if m.reasoning_content %}"
    "{% set c = '<think>\n' + m.reasoning_content + '\n</think>\n' + c %}{% endif %}{% if not loop.last %}"
) + CUTS.partition("m.role == 'assistant' %}")[2]


@pytest.mark.parametrize("after", ["\n", "\n\n", " \n"])
@pytest.mark.parametrize(
    ("source", "lost"),
    [
        (CUTS, "reasoning_content"),
        (CUTS.replace("[-1]", "[-1] | trim"), "reasoning_content"),
        (CUTS.replace("[-1]", "[-1].lstrip('\n')"), "reasoning_content"),
        (CUTS_EARLIER, "of earlier turns"),
    ],
)
def test_reasoning_that_a_template_cuts_out_is_named(read: Read, source: str, lost: str, after: str) -> None:
    """Whatever whitespace follows it; a turn of which more is lost than its reasoning is refused."""
    turns = [user("Q"), assistant(f"<think>\nHm\n</think>{after}A."), user("and?")]
    last = f"<think>\nOr\n</think>{after}B."
    [(name, count)] = read([{"messages": [*turns, assistant(last)]}], source).reports["train"].unprinted.items()
    assert name.endswith(lost) and count == 1
    pair = {"prompt": turns, "chosen": last, "rejected": "C."}
    assert read([pair], source, kind=PreferenceDataModule).reports["train"].unprinted
    if lost == "reasoning_content":
        with pytest.raises(ValueError, match=r"changes the text of messages\[1\]"):
            read([{"messages": [user("Q"), assistant(f"A </think> B </think>{after}C")]}], source)


def test_a_prompt_may_open_the_block_that_a_turn_begins_with(read: Read) -> None:
    """As open-r1's and QwQ's: `<think>` is one token of the prompt, as at inference, and no control text of the turn.
    A turn without it does not follow its prompt."""
    opens = CHATML.replace(r"assistant\n'", r"assistant\n<think>\n'")
    chat = [user("<think>"), assistant("<think>\nHm\n</think>\nA."), user("R"), assistant("<think>\nOr</think>B.")]
    rows = [{"messages": chat}, {"messages": chat[2:]}, {"messages": [*chat[2:3], assistant("B.")]}]
    module = read(rows, opens, control_text="drop", max_dropped_share=0.9)
    assert module.reports["train"].dropped == {"control text in a message": 1, "template refuses the row": 1}
    assert spans(module) == [["Or</think>B.<|im_end|>"]]
    module = read(rows[:1], opens)
    assert spans(module) == [["Hm\n</think>\nA.<|im_end|>", "Or</think>B.<|im_end|>"]]
    tokenizer = module.template.tokenizer
    text = tokenizer.apply_chat_template(chat, chat_template=opens, tokenize=False)
    assert tokenizer.decode(module.examples["train"][0]["input_ids"]) == text.removesuffix("\n")
    thinks = tokenizer.convert_tokens_to_ids("<think>")
    assert module.examples["train"][0]["input_ids"].count(thinks) == 2, "those of the turns, and not the user's"


def test_reasoning_is_no_control_text(read: Read) -> None:
    """Also where the template prints it as any other text, and where control text drops a row: the user's does."""
    chat = [user("Q"), assistant("<think>\nHm\n</think>\n\nA.")]
    rows = [{"messages": chat}, {"messages": [user("<think>"), *chat[1:]]}]
    module = read(rows, control_text="drop", max_dropped_share=0.9)
    assert module.reports["train"].dropped == {"control text in a message": 1}
    assert spans(module) == [["<think>\nHm\n</think>\n\nA.<|im_end|>"]]
    assert spans(read(rows[:1], chat_template="chatml")) == spans(module)


def test_earlier_reasoning_of_a_prompt_is_harmless(read: Read) -> None:
    """The prompt of a pair has no loss, and at inference it lacks that reasoning too."""
    prompt = [user("Q"), assistant("<think>\nHm\n</think>\n\nA."), user("and?")]
    pair = {"prompt": prompt, "chosen": "<think>\nOr\n</think>\n\nB.", "rejected": "C."}
    module = read([pair], kind=PreferenceDataModule)
    ((asked, chosen, rejected),) = pair_texts(module)
    assert "<think>" not in asked and chosen == "<think>\nOr\n</think>\n\nB.<|im_end|>"
    assert rejected == "<think>\n\n</think>\n\nC.<|im_end|>", "the template's own, empty one"
    assert not any("reasoning" in line for line in module.reports["train"].concerns())


@pytest.mark.parametrize(
    ("arguments", "prints", "expected"),
    [
        ('{"a": "ü"}', "{{ t.function.arguments | tojson }}", '{"a": "ü"}'),  # Llama 3.1, Qwen2.5: not "{\"a\": ...}"
        ('{"a": "ü"}', "{% for k, v in t.function.arguments.items() %}{{ k }}={{ v }}{% endfor %}", "a=ü"),  # GLM
        ({"a": "ü"}, "{{ 'x' + t.function.arguments }}", 'x{"a": "ü"}'),  # DeepSeek
        ('{"a": "ü"}', "{{ t.function.arguments }}", '{"a": "ü"}'),  # text that is printed as it is
        ("a = 1", "{{ t.function.arguments | tojson }}", '"a = 1"'),  # no object
    ],
)
def test_arguments_are_given_as_the_template_prints_them(
    read: Read, arguments: Any, prints: str, expected: str
) -> None:
    calls = [{"type": "function", "function": {"name": "add", "arguments": arguments}}]
    chat = [user("Q"), assistant("", tool_calls=calls), {"role": "tool", "content": "3"}, assistant("three.")]
    source = "{% for m in messages %}<{{ m.role }}>{{ m.content }}CALLS<|im_end|>{% endfor %}"
    source += "{% if add_generation_prompt %}<assistant>{% endif %}"
    module = read(
        [{"messages": chat}], source.replace("CALLS", QUOTES.replace("{{ t.function.arguments | tojson }}", prints))
    )
    assert spans(module) == [[f"<call>add {expected}<|im_end|>", DONE]]


def test_a_call_of_sharegpt_is_a_call_where_the_template_prints_calls(read: Read) -> None:
    """Else, and of another function than the row's tools, it stays a text. What tools return is context."""
    called = '{"name": "add", "arguments": {"a": 1}}'
    turns = [("system", "S"), ("human", "Q"), ("function_call", called), ("observation", "3"), ("gpt", "three.")]
    row = {"conversations": [{"from": name, "value": text} for name, text in turns], "tools": [TOOL]}
    source = "{% for m in messages %}<{{ m.role }}>{{ m.content }}" + QUOTES + "<|im_end|>{% endfor %}"
    source += "{% if add_generation_prompt %}<assistant>{% endif %}"
    assert spans(read([row], source)) == [['<call>add {"a": 1}<|im_end|>', DONE]]
    assert spans(read([row], chat_template="chatml")) == [[called + "<|im_end|>", DONE]]
    other = row | {"tools": [{"type": "function", "function": {"name": "mul"}}, {"name": ["add"]}, {}]}
    assert spans(read([other], source)) == [[called + "<|im_end|>", DONE]]
