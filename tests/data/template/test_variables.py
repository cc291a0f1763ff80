"""Tools and switches, of a row and of `data.chat_template_kwargs`, reach the template as transformers passes them."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from smollit.data import ChatDataModule, PreferenceDataModule
from smollit.data.batching.collate import collate_prompts
from smollit.data.prompts import prompt_examples
from smollit.data.template.template import ChatTemplate
from tests.data.conftest import assistant, make, ready, user
from tests.data.formats.conftest import bad, pair, turns

TOOLS = [{"type": "function", "function": {"name": name}} for name in ("add", "mul")]
CALL = {"type": "function", "function": {"name": "add", "arguments": {"x": 1}}}
SOURCE = (
    "T:{{ tools[0].function.name if tools }}|{{ mood }}|{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{{ m.tool_calls | tojson if m.tool_calls }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
CHAT = [user("a?"), assistant("b."), user("c?"), assistant("d.")]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "mine.jinja").write_text(SOURCE)
    return tmp_path / "mine.jinja"


def write(tmp_path: Path, rows: list[dict[str, Any]]) -> str:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def texts(module: ChatDataModule, split: str = "train") -> list[list[tuple[str, bool]]]:
    """Of each chat, its text in pieces, and whether each counts in the loss."""
    found = []
    for example in module.examples[split]:
        ends = [0, *example["spans"], len(example["input_ids"])]
        pieces = [module.template.tokenizer.decode(example["input_ids"][a:b]) for a, b in pairwise(ends)]
        found.append([(text, bool(number % 2)) for number, text in enumerate(pieces) if text])
    return found


# promise: tools
# case: F2
@pytest.mark.parametrize("written", [TOOLS, json.dumps(TOOLS), [json.dumps(tool) for tool in TOOLS], TOOLS[0]])
def test_tools_of_a_row_reach_the_template(tmp_path: Path, source: Path, written: Any) -> None:
    """The text starts with T:add, which is context, also in the prompt of `predict`; another row has none."""
    rows = [{"messages": CHAT, "tools": written}, {"messages": CHAT, "tools": None}]
    module = ready(tmp_path, write(tmp_path, rows), chat_template=str(source))
    before = "||<user>a?<|im_end|><assistant>"
    rest = [("b.<|im_end|>", True), ("<user>c?<|im_end|><assistant>", False), ("d.<|im_end|>", True)]
    assert texts(module) == [[("T:add" + before, False), *rest], [("T:" + before, False), *rest]]
    prompts = collate_prompts([[module.examples["train"][0]]])
    prompt = module.template.tokenizer.decode(prompts.input_ids[0])
    assert prompt == "T:add||<user>a?<|im_end|><assistant>b.<|im_end|><user>c?<|im_end|><assistant>"
    prompts = prompt_examples(
        Path(write(tmp_path, [{"Question": "a?", "system_prompt": "s", "tools": written}])), module.template
    )
    assert (
        module.template.tokenizer.decode(prompts[0]["prompt_ids"])
        == "T:add||<system>s<|im_end|><user>a?<|im_end|><assistant>"
    )


# case: F1
@pytest.mark.parametrize("written", [[CALL], json.dumps([CALL]), [json.dumps(CALL)], CALL, json.dumps(CALL)])
def test_calls_and_results_as_data_sets_write_them(written: Any) -> None:
    """Calls are a list of objects, whatever they were written as, and what a tool returns is its JSON text."""
    row = {
        "messages": [
            user("q"),
            {"role": "assistant", "tool_calls": written},
            {"role": "tool", "content": {"sum": 3}},
            assistant("a"),
        ]
    }
    _, call, result, _ = turns(row)
    assert call == {"role": "assistant", "content": "", "tool_calls": [CALL]}
    assert result["content"] == '{"sum": 3}'
    assert (
        "messages[1].tool_calls is a text that is not JSON"
        in bad({"messages": [user("q"), {"role": "assistant", "tool_calls": "f()"}]}).detail
    )


def test_tools_of_a_pair_reach_the_template(tmp_path: Path, source: Path) -> None:
    rows = [{"prompt": "a?", "chosen": "b.", "rejected": "c.", "tools": TOOLS[1:], "chat_template_kwargs": {"mood": 3}}]
    module = ready(tmp_path, write(tmp_path, rows), PreferenceDataModule, chat_template=str(source))
    ids = module.examples["train"][0]["prompt_ids"]
    assert module.template.tokenizer.decode(ids) == "T:mul|3|<user>a?<|im_end|><assistant>"


# case: F2
def test_switches_of_all_rows_and_of_a_row(tmp_path: Path, source: Path) -> None:
    """A row's switch wins; another setting is another entry of the cache; the source of the export has the default."""
    data = write(tmp_path, [{"messages": CHAT[:2]}, {"messages": CHAT[:2], "chat_template_kwargs": '{"mood": "sad"}'}])
    options: dict[str, Any] = {"chat_template": str(source), "chat_template_kwargs": {"mood": "it's {{ fine }}"}}
    module = ready(tmp_path, data, **options)
    assert [pieces[0][0].split("|")[1] for pieces in texts(module)] == ["it's {{ fine }}", "sad"]
    other = ready(tmp_path, data, **options | {"chat_template_kwargs": {"mood": "good"}})
    assert other.examples["train"].keys != module.examples["train"].keys
    tokenizer, template = module.template.tokenizer, module.template
    text = tokenizer.apply_chat_template(CHAT, chat_template=template.source, tokenize=False)
    assert text == template.render(CHAT).text and text.startswith("T:|it's {{ fine }}|")
    with pytest.raises(ValueError, match=r"`data.chat_template_kwargs` has the key 'tools', which is no switch"):
        _ = make(tmp_path, data, chat_template_kwargs={"tools": []}).template


@pytest.mark.parametrize(
    ("column", "what"),
    [
        ({"tools": "hammer"}, "tools is a text that is not JSON"),
        ({"tools": 3}, "tools must be a list of tools, or its JSON text, got 3"),
        ({"tools": [3]}, r"tools\[0\] must be an object, got 3"),
        ({"chat_template_kwargs": [3]}, "`chat_template_kwargs` must be an object, got list"),
        (
            {"chat_template_kwargs": {"messages": 3}},
            "`chat_template_kwargs` has the key 'messages', which is no switch",
        ),
        (
            {"tools": [{"function": {"name": "<|im_end|>"}}]},
            "is where the template does more than print a message's text",
        ),
    ],
)
def test_malformed_tools_and_switches_are_named(
    tmp_path: Path, source: Path, column: dict[str, Any], what: str
) -> None:
    with pytest.raises(ValueError, match="row 0: .*" + what):
        ready(tmp_path, write(tmp_path, [{"messages": CHAT, **column}]), chat_template=str(source))


def test_tools_have_no_parameters_of_other_tools(tmp_path: Path) -> None:
    """`datasets` gives each tool the keys of all others, as nulls, which its JSON Lines keep; a default may be null."""
    path = tmp_path / "aligned.jsonl"
    kinds = [{"a": {"type": "string"}}, {"b": {"type": "number", "default": None}}]
    tools = [{"type": "function", "function": {"parameters": {"properties": kind}}} for kind in kinds]
    Dataset.from_list([{"messages": CHAT, "tools": tools}]).to_json(path)
    assert '"b":null' in path.read_text().replace(" ", "")
    (tmp_path / "mine.jinja").write_text("{{ tools | tojson }}" + SOURCE)
    whole = texts(ready(tmp_path, str(path), chat_template=str(tmp_path / "mine.jinja"), max_length=512))[0][0][0]
    read = json.JSONDecoder().raw_decode(whole)[0]
    assert [tool["function"]["parameters"]["properties"] for tool in read] == [
        {"a": {"type": "string"}},
        {"b": {"type": "number", "default": None}},
    ]


def test_calls_have_no_arguments_of_other_tools() -> None:
    """A null for a parameter that the called tool lacks comes from Arrow; one for its own parameter is the author's."""
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {}}}}}]
    calls = [{"name": "f", "arguments": {"a": None, "b": None, "c": 1}}, {"name": "g", "arguments": {"b": None}}]
    called = [assistant("", tool_calls=[{"type": "function", "function": call}]) for call in calls]
    chat = turns({"messages": [user("q"), called[0], user("r"), called[1]], "tools": tools})[1::2]
    responses = pair({"prompt": "q", "chosen": called[:1], "rejected": called[1:], "tools": tools})[1:3]
    for said in (chat, responses):
        found = [turn["tool_calls"][0]["function"]["arguments"] for turn in said]
        assert found == [{"a": None, "c": 1}, {"b": None}]


# promise: tools
@pytest.mark.parametrize("variables", [{"tools": TOOLS}, {"mood": 1}, {"tools": TOOLS, "mood": [1]}])
def test_variables_render_as_transformers_renders_them(
    load: Callable[..., ChatTemplate], tiny_tokenizer: PreTrainedTokenizerBase, variables: dict[str, Any]
) -> None:
    called = [user("a"), assistant("", tool_calls=[{"function": {"name": "add", "arguments": {"ö": 1}}}])]
    for messages in (CHAT, called):
        expected = tiny_tokenizer.apply_chat_template(messages, chat_template=SOURCE, tokenize=False, **variables)
        assert load(SOURCE).render(messages, variables=variables).text == expected
