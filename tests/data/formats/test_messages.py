"""Rows of any known schema become conversations and pairs, or say where and why not."""

import json
from dataclasses import replace
from typing import Any

import pytest

from smollit.data.formats.converters import to_record
from smollit.data.formats.drop_reason import BadRow
from smollit.data.formats.format import Format
from smollit.data.formats.messages import Roles
from smollit.data.formats.types import Conversation, Preference, drop_nulls

CHAT = Format("messages", "chat", {"messages": "messages"})
PAIR = Format("preference", "preference", {part: part for part in ("prompt", "chosen", "rejected")})


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def to_conversation(row: dict[str, Any], format: Format = CHAT) -> Conversation:
    record = to_record(row, format)
    assert isinstance(record, Conversation)
    return record


def to_preference(row: dict[str, Any]) -> Preference:
    record = to_record(row, PAIR)
    assert isinstance(record, Preference)
    return record


def problem(row: dict[str, Any], format: Format | None = None) -> BadRow:
    is_pair = "chosen" in row or "rejected" in row
    with pytest.raises(BadRow) as caught:
        to_record(row, format or (PAIR if is_pair else CHAT))
    return caught.value


# ---- chats


def test_messages_pass_through() -> None:
    """Two turns in, the same two turns out."""
    messages = [user("hi"), assistant("yo")]
    assert to_conversation({"messages": messages}).messages == messages


# case: template-03
@pytest.mark.parametrize("message", [{"role": "assistant", "content": None}, {"role": "assistant"}])
def test_null_or_missing_content_names_the_message(message: dict[str, Any]) -> None:
    """Message 1 of 0, 1 has no content."""
    bad = problem({"messages": [user("hi"), message]})
    assert bad.reason == "null content"
    assert "messages[1].content" in bad.detail


# case: template-03
def test_null_content_beside_tool_calls_is_empty_text() -> None:
    """null -> "", and keys that are null are gone."""
    call = {"role": "assistant", "content": None, "name": None, "tool_calls": [{"name": "add"}]}
    answer = to_conversation({"messages": [user("hi"), call]}).messages[1]
    assert answer == {"role": "assistant", "content": "", "tool_calls": [{"name": "add"}]}


# case: template-03
def test_nulls_are_left_out_at_any_depth() -> None:
    """Arrow gives every struct all keys of the column, filled with None."""
    filled = [{"role": "user", "content": "a", "tool_calls": None}, {"f": [{"x": 1, "y": None}], "z": 0}]
    assert drop_nulls(filled) == [{"role": "user", "content": "a"}, {"f": [{"x": 1}], "z": 0}]


# case: template-07
def test_text_parts_are_joined() -> None:
    """ "a" + "b" = "ab"."""
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert to_conversation({"messages": [user(parts), assistant("x")]}).messages[0]["content"] == "ab"


# case: template-07
@pytest.mark.parametrize(
    ("content", "named"),
    [
        ([{"type": "text", "text": "a"}, {"type": "image"}], "messages[0].content[1] is a part of type 'image'"),
        (["a"], "messages[0].content[0] is a part of type 'str'"),
        (5, "messages[0].content must be text, got 5"),
        ({"a": 1}, "messages[0].content must be text, got dict"),
    ],
)
def test_contents_that_are_not_text_are_named(content: Any, named: str) -> None:
    bad = problem({"messages": [user(content), assistant("x")]})
    assert bad.reason == "content is not text"
    assert named in bad.detail


@pytest.mark.parametrize("content", ["", " \n\t", []])
@pytest.mark.parametrize("where", [1, 3])
def test_an_empty_answer_anywhere_makes_the_chat_bad(content: Any, where: int) -> None:
    """The answers are messages 1 and 3."""
    messages = [user("a"), assistant("b"), user("c"), assistant("d")]
    messages[where] = assistant(content)
    bad = problem({"messages": messages})
    assert bad.reason == "empty response"
    assert f"messages[{where}]" in bad.detail


@pytest.mark.parametrize(
    ("messages", "cause"),
    [
        ([], "empty conversation"),
        (None, "missing value"),
        ("hello", "malformed messages"),
        ("[{'role': 'user', 'content': 'as Python prints it'}]", "malformed messages"),
        ({"role": ["user"], "content": ["a"]}, "malformed messages"),
        (["hello"], "malformed messages"),
        ([user("a")], "no assistant turn"),
        ([{"content": "a"}], "unknown role"),
        ([{"role": "human", "content": "a"}], "unknown role"),
        ([{"role": ["user"], "content": "a"}], "unknown role"),
        ([user("a"), user("b"), assistant("c")], "odd role order"),
        ([user("a"), assistant("b"), assistant("c")], "odd role order"),
        ([user("a"), {"role": "system", "content": "s"}, assistant("c")], "odd role order"),
    ],
)
def test_malformed_chats_are_counted_by_cause(messages: Any, cause: str) -> None:
    assert problem({"messages": messages}).reason == cause


def test_messages_may_be_json_text_as_in_csv() -> None:
    messages = [user("hi"), assistant("yo")]
    assert to_conversation({"messages": json.dumps(messages)}).messages == messages


# ---- pairs


# case: data-03
def test_repeated_prompt_is_cut_off_the_answers() -> None:
    """prompt [q], chosen [q, a], rejected [q, b] -> [q], a, b."""
    pair = to_preference(
        {"prompt": "q", "chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")]}
    )
    assert (pair.prompt, pair.chosen, pair.rejected) == ([user("q")], assistant("a"), assistant("b"))


# case: data-03
@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "chosen": [user("r"), assistant("a")], "rejected": [user("r"), assistant("b")]},
        {"prompt": "q", "chosen": [user("q"), assistant("a")], "rejected": [user("r"), assistant("b")]},
        {"chosen": [user("q"), assistant("a")], "rejected": [user("r"), assistant("b")]},
    ],
)
def test_prompts_that_differ_are_refused(row: dict[str, Any]) -> None:
    assert problem(row).reason == "prompts differ"


def test_system_text_of_the_conversations_is_kept() -> None:
    """`prompt` holds only the user's turn; the conversations also have the system text."""
    system = {"role": "system", "content": "s"}
    row = {"prompt": "q"} | {name: [system, user("q"), assistant(name)] for name in ("chosen", "rejected")}
    assert to_preference(row).prompt == [system, user("q")]


@pytest.mark.parametrize("wrap", [lambda text: text, lambda text: [assistant(text)]])
@pytest.mark.parametrize("prompt", ["q", [user("q")], json.dumps([user("q")])])
def test_texts_and_single_messages_are_the_same_pair(wrap: Any, prompt: Any) -> None:
    pair = to_preference({"prompt": prompt, "chosen": wrap("a"), "rejected": wrap("b")})
    assert (pair.prompt, pair.chosen, pair.rejected) == ([user("q")], assistant("a"), assistant("b"))


@pytest.mark.parametrize("text", ['[{"x": 1}]', "[1, 2]", "[{not json", '{"role": "user"}'])
def test_answers_that_only_look_like_json_stay_text(text: str) -> None:
    assert to_preference({"prompt": "q", "chosen": text, "rejected": "b"}).chosen == assistant(text)


def test_messages_printed_by_python_are_not_trained_as_text() -> None:
    """str(list) in a CSV cell would else become the answer's text."""
    row = {"prompt": "q", "chosen": str([user("q"), assistant("a")]), "rejected": "b"}
    assert problem(row).reason == "malformed messages"


# case: data-11
@pytest.mark.parametrize("answer", [[user("b")], [user("q"), user("b")], [{"role": "tool", "content": "b"}]])
def test_an_answer_that_is_no_assistant_turn_is_refused(answer: Any) -> None:
    bad = problem({"prompt": "q", "chosen": "a", "rejected": answer})
    assert bad.reason == "response is not an assistant turn"
    assert "rejected" in bad.detail


@pytest.mark.parametrize(
    ("row", "cause"),
    [
        ({"chosen": "a", "rejected": "b"}, "no prompt"),
        ({"prompt": "", "chosen": "a", "rejected": "b"}, "no prompt"),
        ({"prompt": "q", "chosen": "a"}, "missing value"),
        ({"prompt": "q", "chosen": None, "rejected": "b"}, "missing value"),
        ({"prompt": "q", "chosen": "", "rejected": "b"}, "empty response"),
        ({"prompt": "q", "chosen": "a", "rejected": " "}, "empty response"),
        ({"prompt": "q", "chosen": [user("q"), user("r"), assistant("a")], "rejected": "b"}, "prompts differ"),
        ({"prompt": [user("q"), user("r")], "chosen": "a", "rejected": "b"}, "odd role order"),
        ({"prompt": [user("q"), assistant("x"), assistant("y")], "chosen": "a", "rejected": "b"}, "odd role order"),
    ],
)
def test_malformed_pairs_are_counted_by_cause(row: dict[str, Any], cause: str) -> None:
    assert problem(row).reason == cause


# case: template-10
def test_a_prompt_may_end_with_a_tool_result() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "ask"}]}
    prompt = [user("q"), call, {"role": "tool", "content": "42"}]
    assert [turn["role"] for turn in to_preference({"prompt": prompt, "chosen": "a", "rejected": "b"}).prompt] == [
        "user",
        "assistant",
        "tool",
    ]


# case: template-10
def test_a_prompt_may_end_with_the_start_of_the_answer() -> None:
    """prompt [q, "The sum"], chosen " is 4": the answer continues the assistant's turn."""
    pair = to_preference({"prompt": [user("q"), assistant("The sum")], "chosen": " is 4", "rejected": " is 5"})
    assert pair.prompt == [user("q"), assistant("The sum")]
    assert (pair.chosen, pair.rejected) == (assistant(" is 4"), assistant(" is 5"))


# ---- roles


# case: template-10
def test_roles_that_the_user_lists_are_kept() -> None:
    """Else they are unknown, and the detail says how to list them."""
    messages = [user("a"), {"role": "critic", "content": "b"}, assistant("c")]
    assert to_conversation({"messages": messages}, replace(CHAT, roles=Roles(("critic",)))).messages == messages
    bad = problem({"messages": messages})
    assert bad.reason == "unknown role"
    assert "messages[1].role is 'critic'" in bad.detail
    assert "data.extra_roles" in bad.detail


def test_a_listed_role_may_be_the_one_that_answers() -> None:
    messages = [user("a"), {"role": "critic", "content": "b"}]
    assert to_conversation({"messages": messages}, replace(CHAT, roles=Roles(("critic",)))).messages == messages


@pytest.mark.parametrize("message", [{"from": "human", "value": "a"}, {"role": "Human", "content": "a"}])
def test_sharegpt_among_messages_is_named(message: dict[str, Any]) -> None:
    bad = problem({"messages": [message, assistant("b")]})
    assert bad.reason == "unknown role"
    assert "`data.format: sharegpt` reads it" in bad.detail


# ---- which messages are trained


@pytest.mark.parametrize(
    ("said", "trained"),
    [
        ({"train": False}, {"train": False}),
        ({"train": True}, {"train": True}),
        ({"weight": 0}, {"train": False}),
        ({"weight": 1.0}, {}),
        ({"weight": 1, "train": True}, {"train": True}),
        ({"train": 0, "weight": 0.0}, {"train": False}),
        ({"train": None, "weight": None}, {}),
    ],
)
def test_train_and_weight_become_one_key(said: dict[str, Any], trained: dict[str, bool]) -> None:
    messages = to_conversation({"messages": [user("a"), assistant("b") | said]}).messages
    assert messages == [user("a"), assistant("b") | trained]


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({"weight": 0.5}, "messages[1].weight must be true, false, 1 or 0, got 0.5"),
        ({"weight": 2}, "got 2"),
        ({"weight": float("nan")}, "got nan"),
        ({"train": "false"}, "messages[1].train must be true, false, 1 or 0, got 'false'"),
        ({"train": []}, "got list"),
        ({"train": True, "weight": 0}, "messages[1].train and messages[1].weight disagree"),
    ],
)
def test_other_weights_are_refused(said: dict[str, Any], named: str) -> None:
    bad = problem({"messages": [user("a"), assistant("b") | said]})
    assert bad.reason == "malformed weight"
    assert named in bad.detail


# ---- details


def test_details_are_short_and_valid_unicode() -> None:
    """Arrow refuses a lone surrogate; a role of a million characters helps nobody."""
    assert problem({"messages": [{"role": "\ud800" * 10**6, "content": "a"}]}).detail.encode()
    assert len(problem({"messages": [{"role": "r" * 10**6, "content": "a"}]}).detail) < 300
    assert BadRow("c", "\ud800").detail == "\\ud800"


@pytest.mark.parametrize("depth", [500, 200_000])
def test_what_nests_too_deeply_is_a_bad_row(depth: int) -> None:
    """JSON text of so many lists, and of an integer that Python refuses to read."""
    assert problem({"messages": "[" * depth}).reason == "malformed messages"
    assert problem({"messages": f"[{'9' * 5000}]"}).reason == "malformed messages"
    assert problem({"messages": [10**5000]}).reason == "malformed messages"
