"""What a row says and its template does not print is named with its weight, and refused where nothing else is left."""

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from smollit.data import ChatDataModule
from smollit.data.formats.drop_reason import BadRow, DropReason
from smollit.data.formats.types import Conversation
from smollit.data.template.template import ChatTemplate
from tests.data.conftest import assistant, make, ready, user
from tests.data.template.test_variables import CHAT, TOOLS, write

CALL = {"type": "function", "id": "c1", "function": {"name": "add", "arguments": {"a": 1}}}
CALLS = [user("1 + 2?"), assistant("", tool_calls=[CALL]), {"role": "tool", "content": "3", "name": "add"}, CHAT[1]]
PRINTS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}WHAT<|im_end|>{% endfor %}"
PROMPT = "{% if add_generation_prompt %}<assistant>{% endif %}"


def unprinted(tokenizer: PreTrainedTokenizerBase, what: str, messages: list[dict[str, Any]], **variables: Any) -> Any:
    template = ChatTemplate(tokenizer, PRINTS.replace("WHAT", what) + PROMPT)
    return template.unprinted(template.segment_chat(Conversation(messages, variables)))


# promise: unprinted
# case: F1
@pytest.mark.parametrize(
    ("what", "messages", "expected"),
    [
        ("{{ m.tool_calls }}{{ m.name }}", CALLS, ()),
        ("{{ m.tool_calls[0].function if m.tool_calls }}", CALLS, ("name of tool results",)),
        ("{{ m.tool_calls[0] if m.tool_calls }}", [CALLS[0], assistant("x", tool_calls=[CALL, CALL])],
         ("all tool_calls of a turn but the first",)),
        ("", [user("a", mood="good"), assistant("b", reasoning_content="hm")], ("mood", "reasoning_content")),
        ("{{ m.reasoning_content if loop.last }}", [user("a"), assistant("b", reasoning_content="hm"), user("c"),
         assistant("d", reasoning_content="hm")], ("reasoning_content of earlier turns",)),
        # The key is printed only through what another text holds: rendering decides, not the text that is found.
        ("", [user("hm"), assistant("hm", reasoning_content="hm")], ("reasoning_content",)),
    ],
)  # fmt: skip
def test_rendering_with_and_without_a_key_decides(
    tiny_tokenizer: PreTrainedTokenizerBase, what: str, messages: list[dict[str, Any]], expected: tuple[str, ...]
) -> None:
    assert unprinted(tiny_tokenizer, what, messages) == expected


def test_reasoning_is_printed_if_transformers_gives_it_by_that_name(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    """transformers 5.24 gives a template `thinking` for `reasoning_content`; 5.17 does not, so that it is lost."""
    chat = [user("a"), assistant("b", reasoning_content="hm")]
    prints = (
        tiny_tokenizer.apply_chat_template(chat, chat_template="{{ messages[1].thinking }}", tokenize=False) == "hm"
    )
    assert unprinted(tiny_tokenizer, "{{ m.thinking }}", chat) == (() if prints else ("reasoning_content",))


def test_tools_switches_and_contents_are_tried_too(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    assert unprinted(tiny_tokenizer, "", CHAT, tools=TOOLS, mood=1) == ("chat_template_kwargs.mood", "tools")
    assert unprinted(tiny_tokenizer, "{{ mood }}{{ tools if loop.first }}", CHAT, tools=TOOLS, mood=1) == ()
    hides = PRINTS.replace("m.content", "(m.content if m.role != 'tool' else '')").replace("WHAT", "")
    template = ChatTemplate(tiny_tokenizer, hides + PROMPT)
    switch = PRINTS.replace("m.content", "(m.content.replace('/think', '') or 'Be kind.')").replace(
        "WHAT", ""
    )  # SmolLM3's convention
    template_with_switch = ChatTemplate(tiny_tokenizer, switch + PROMPT)
    row = template_with_switch.segment_chat(Conversation([{"role": "system", "content": "/think"}, *CHAT]))
    assert template_with_switch.unprinted(row) == ()
    chat = [user("a"), assistant("b"), {"role": "tool", "content": "3"}, assistant("d")]
    assert template.unprinted(template.segment_chat(Conversation(chat))) == ("content of role tool",)


# case: F1
def test_a_turn_of_which_nothing_is_printed_is_refused(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    """Its loss would be <|im_end|> alone."""
    with pytest.raises(BadRow, match=r"prints nothing of messages\[1\], which has tool_calls: only its end") as caught:
        unprinted(tiny_tokenizer, "", CALLS)
    assert caught.value.reason == DropReason.UNPRINTED


# case: F1
def test_the_report_names_keys_with_their_weight(tmp_path: Path) -> None:
    """Row 1 of 3 has a thought, rows 0 and 1 have an id: ChatML prints neither, and the loss tokens are the same."""
    thinks = [CHAT[0], assistant("b.", thinking="hm", id="x"), *CHAT[2:]]
    rows = [{"messages": [CHAT[0], assistant("b.", id="y"), *CHAT[2:]]}, {"messages": thinks}, {"messages": CHAT}]
    report = ready(tmp_path, write(tmp_path, rows)).reports["train"]
    assert report.unprinted == {"id": 2, "thinking": 1}
    (concern,) = [line for line in report.concerns() if "not print" in line]
    assert concern.startswith(
        "1 of 3 rows (33.3%) have thinking, which the chat template does not print (first: row 1)"
    )
    assert any(line.startswith("2 of 3 rows (66.7%) have id") for line in report.notes())


def test_earlier_reasoning_that_a_template_removes_is_harmless_without_loss(tmp_path: Path) -> None:
    """`data.train_on: last` is the advice, and following it silences the concern."""
    (tmp_path / "mine.jinja").write_text(PRINTS.replace("WHAT", "{{ m.thinking if loop.last }}") + PROMPT)
    rows = [{"messages": [CHAT[0], assistant("b.", thinking="hm"), CHAT[2], assistant("d", thinking="hm")]}]
    options = {"chat_template": str(tmp_path / "mine.jinja")}

    def concerns(**more: str) -> str:
        return " ".join(
            ready(tmp_path, write(tmp_path, rows), ChatDataModule, **options, **more).reports["train"].concerns()
        )

    assert "thinking of earlier turns" in concerns() and "`data.train_on: last`" in concerns()
    assert "thinking" not in concerns(train_on="last")


def test_a_switch_that_no_template_reads_is_an_error(tmp_path: Path) -> None:
    """Those that it has are named, and not what the template sets itself."""
    source = (
        "{% if mood is not defined %}{% set mood = 1 %}{% endif %}{% if mood %}{% set own = 2 %}{% endif %}{{ own }}"
    )
    (tmp_path / "mine.jinja").write_text(source)
    options = {"chat_template": str(tmp_path / "mine.jinja"), "chat_template_kwargs": {"own": 1, "foo": 1}}
    with pytest.raises(ValueError, match=r"has the key 'foo', .* It reads: mood$"):
        _ = make(tmp_path, write(tmp_path, [{"messages": CHAT}]), **options).template
    with pytest.raises(ValueError, match="has the key 'enable_thinking', which the chat template does not read"):
        _ = make(tmp_path, write(tmp_path, [{"messages": CHAT}]), chat_template_kwargs={"enable_thinking": 1}).template
