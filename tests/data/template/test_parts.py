"""`data.train_on` names parts of assistant turns: reasoning, content, tool_calls."""

from pathlib import Path
from typing import Any

import pytest

from smollit.data.batching.collate import collate_prompts
from tests.data.conftest import assistant, ready, user
from tests.data.template.test_variables import write

CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": "1"}}}
# As Qwen3 prints them, for each turn.
SOURCE = (
    "{% for m in messages %}<|im_start|>{{ m.role + '\n' }}"
    "{% if m.thinking %}<think>\n{{ m.thinking }}\n</think>\n\n{% endif %}"
    "{{ m.content }}{% for call in m.tool_calls or [] %}<call>{{ call.function | tojson }}</call>{% endfor %}"
    "<|im_end|>{{ '\n' }}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant{{ '\n' }}{% endif %}"
)
CHAT = [
    user("1 + 2?"),
    assistant("I add.", thinking="A sum.", tool_calls=[CALL]),
    {"role": "tool", "content": "3"},
    assistant("", thinking="More.", tool_calls=[CALL]),
    {"role": "tool", "content": "3"},
    assistant("It is 3.", thinking="Done."),
]
CALLS = '<call>{"name": "add", "arguments": {"a": "1"}}</call><|im_end|>'
THOUGHTS = [f"<think>\n{thought}\n</think>\n\n" for thought in ("A sum.", "More.", "Done.")]
CONTENTS = ["I add.", "", "It is 3.<|im_end|>"]


# promise: tools
@pytest.mark.parametrize(
    ("train_on", "expected"),
    [
        (["reasoning"], THOUGHTS),
        (["content"], [CONTENTS[0], CONTENTS[2]]),
        (["tool_calls"], [CALLS, CALLS]),
        (["content", "tool_calls"], [CONTENTS[0] + CALLS, CALLS, CONTENTS[2]]),
        (["reasoning", "tool_calls"], [THOUGHTS[0], CALLS, THOUGHTS[1] + CALLS, THOUGHTS[2]]),
        (["reasoning", "content", "tool_calls"], [THOUGHTS[0] + CONTENTS[0] + CALLS, THOUGHTS[1] + CALLS,
         THOUGHTS[2] + CONTENTS[2]]),
        (["tool_calls", "user"], ["1 + 2?<|im_end|>", CALLS, CALLS]),
        ("assistant", [THOUGHTS[0] + CONTENTS[0] + CALLS, THOUGHTS[1] + CALLS, THOUGHTS[2] + CONTENTS[2]]),
    ],
)  # fmt: skip
def test_parts_of_turns_count_alone(tmp_path: Path, train_on: Any, expected: list[str]) -> None:
    """The prompt of `predict` ends where inference starts, whatever part of the response counts."""
    (tmp_path / "mine.jinja").write_text(SOURCE)
    rows = write(tmp_path, [{"messages": CHAT}])
    module = ready(tmp_path, rows, chat_template=str(tmp_path / "mine.jinja"), train_on=train_on, max_length=1000)
    (example,), decode = module.examples["train"].rows, module.template.tokenizer.decode
    spans = zip(example["spans"][::2], example["spans"][1::2], strict=True)
    assert [decode(example["input_ids"][start:end]) for start, end in spans] == expected
    prompt = decode(collate_prompts([[module.examples["train"][0]]]).input_ids[0])
    if train_on != ["tool_calls"]:  # tokens after the last loss token are left out, and the last turn with them
        assert prompt.endswith("<|im_start|>tool\n3<|im_end|>\n<|im_start|>assistant\n")


def test_a_row_without_such_a_part_is_dropped(tmp_path: Path) -> None:
    rows = write(tmp_path, [{"messages": [user("a"), assistant("b")]}])
    with pytest.raises(ValueError, match=r"no turn has a part of `data.train_on`: \('tool_calls',\)"):
        ready(tmp_path, rows, train_on=["tool_calls"])


def test_reasoning_in_the_content_counts_as_reasoning(tmp_path: Path) -> None:
    rows = write(tmp_path, [{"messages": [user("a"), assistant("<think>hm</think>\nb")]}])
    for part, expected in {"reasoning": "<think>hm</think>\n", "content": "b<|im_end|>"}.items():
        (example,) = ready(tmp_path, rows, train_on=[part]).examples["train"].rows
        start, end = example["spans"]
        assert ready(tmp_path, rows).template.tokenizer.decode(example["input_ids"][start:end]) == expected
