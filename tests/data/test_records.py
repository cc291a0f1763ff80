"""Rows of any known schema become conversations and pairs, or say where and why not."""

import json
from typing import Any

import pytest

from smollit.data.records import BadRow, check_columns, drop_nulls, to_conversation, to_preference


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def problem(row: dict[str, Any]) -> BadRow:
    make = to_preference if "chosen" in row or "rejected" in row else to_conversation
    with pytest.raises(BadRow) as caught:
        make(row)
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
    assert bad.cause == "null content"
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
        (5, "messages[0].content must be text, got int: 5"),
        ({"a": 1}, "messages[0].content must be text, got dict"),
    ],
)
def test_contents_that_are_not_text_are_named(content: Any, named: str) -> None:
    bad = problem({"messages": [user(content), assistant("x")]})
    assert bad.cause == "content is not text"
    assert named in bad.detail


@pytest.mark.parametrize("content", ["", " \n\t", []])
@pytest.mark.parametrize("where", [1, 3])
def test_an_empty_answer_anywhere_makes_the_chat_bad(content: Any, where: int) -> None:
    """The answers are messages 1 and 3."""
    messages = [user("a"), assistant("b"), user("c"), assistant("d")]
    messages[where] = assistant(content)
    bad = problem({"messages": messages})
    assert bad.cause == "empty answer"
    assert f"messages[{where}]" in bad.detail


@pytest.mark.parametrize(
    ("messages", "cause"),
    [
        ([], "empty conversation"),
        (None, "no `messages`"),
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
    assert problem({"messages": messages}).cause == cause


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
    assert problem(row).cause == "prompts differ"


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
    assert problem(row).cause == "malformed messages"


# case: data-11
@pytest.mark.parametrize("answer", [[user("b")], [user("q"), user("b")], [{"role": "tool", "content": "b"}]])
def test_an_answer_that_is_no_assistant_turn_is_refused(answer: Any) -> None:
    bad = problem({"prompt": "q", "chosen": "a", "rejected": answer})
    assert bad.cause == "answer is not an assistant turn"
    assert "rejected" in bad.detail


@pytest.mark.parametrize(
    ("row", "cause"),
    [
        ({"chosen": "a", "rejected": "b"}, "no prompt"),
        ({"prompt": "", "chosen": "a", "rejected": "b"}, "no prompt"),
        ({"prompt": "q", "chosen": "a"}, "no `rejected`"),
        ({"prompt": "q", "chosen": None, "rejected": "b"}, "no `chosen`"),
        ({"prompt": "q", "chosen": "", "rejected": "b"}, "empty answer"),
        ({"prompt": "q", "chosen": "a", "rejected": " "}, "empty answer"),
        ({"prompt": [user("q"), assistant("x")], "chosen": "a", "rejected": "b"}, "odd role order"),
    ],
)
def test_malformed_pairs_are_counted_by_cause(row: dict[str, Any], cause: str) -> None:
    assert problem(row).cause == cause


# case: template-10
def test_a_prompt_may_end_with_a_tool_result() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "ask"}]}
    prompt = [user("q"), call, {"role": "tool", "content": "42"}]
    assert [turn["role"] for turn in to_preference({"prompt": prompt, "chosen": "a", "rejected": "b"}).prompt] == [
        "user",
        "assistant",
        "tool",
    ]


# ---- columns


def test_pairs_given_to_the_chat_module_are_refused_in_one_sentence() -> None:
    with pytest.raises(ValueError, match="the columns prompt, chosen, rejected, but chats need `messages`") as caught:
        check_columns(["prompt", "chosen", "rejected"], "chat", "split train")
    assert "UltraFeedbackDataModule" in str(caught.value)


def test_chats_given_to_the_preference_module_are_refused_in_one_sentence() -> None:
    with pytest.raises(ValueError, match="preference pairs need `chosen` and `rejected`") as caught:
        check_columns(["prompt", "messages"], "preference", "split train")
    assert "UltraChatDataModule" in str(caught.value)


def test_unknown_columns_are_named() -> None:
    with pytest.raises(ValueError, match=r"has the columns text, but chats need `messages`$"):
        check_columns(["text"], "chat", "split train")
