"""Rows of every format become the same chats and pairs, or a BadRow with the reason and the position."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from smollit.data import ChatDataModule, PreferenceDataModule
from smollit.data.formats.converters import decode_row
from smollit.data.formats.types import Kind, Text
from tests.data.conftest import END, Row, assistant, pair_texts, ready, spans, system, user, whole
from tests.data.formats.conftest import HI, bad, columns_of, gpt, human, known, pair, to_record, turns
from tests.data.sources.conftest import write

CHATS: dict[str, tuple[list[Row], list[list[Row]]]] = {
    "messages": (
        [
            {"messages": HI},
            {"messages": [system("s"), *HI]},
            {"messages": [user([{"type": "text", "text": "hi"}]), HI[1]]},
        ],
        [HI, [system("s"), *HI], HI],
    ),
    "sharegpt": (
        [
            {"conversations": [{"from": "system", "value": "s"}, human("hi"), gpt("yo")]},
            {"conversations": [{"from": "user", "value": "hi"}, {"from": "ChatGPT", "value": "yo"}]},
            {
                "conversations": [
                    human("hi"),
                    {"from": "function_call", "value": "f(1)"},
                    {"from": "observation", "value": "2"},
                    {"from": "bard", "value": "yo", "weight": 0},
                ]
            },
        ],
        [
            [system("s"), *HI],
            HI,
            [HI[0], assistant("f(1)"), {"role": "tool", "content": "2"}, HI[1] | {"train": False}],
        ],
    ),
    "sharegpt under messages": ([{"messages": [human("hi"), gpt("yo")]}], [HI]),
    "sharegpt with roles": (
        [{"conversations": [{"role": "human", "content": "hi"}, {"role": "gpt", "content": "yo"}]}],
        [HI],
    ),
    "sharegpt with a column": ([{"conversations": [human("hi"), gpt("yo")], "system": "s"}], [[system("s"), *HI]]),
    "messages under conversations": ([{"conversations": HI}], [HI]),
    "messages of exchanges": (
        [{"conversation": [{"system": "s", "prompt": "hi", "response": "yo", "note": "n"}]}],
        [[system("s"), HI[0], HI[1] | {"note": "n"}]],  # what the template does not print is named
    ),
    "prompt_completion": (
        [{"prompt": "hi", "completion": "yo"}, {"prompt": "hi", "completion": "yo", "system": "s"}],
        [HI, [system("s"), *HI]],
    ),
    "prompt_completion of chats": (
        [
            {"prompt": [user("hi")], "completion": [assistant("yo")]},
            {"prompt": [*HI, user("more")], "completion": [assistant("no")]},
        ],
        # The assistant turns of the prompt are context.
        [HI, [HI[0], HI[1] | {"train": False}, user("more"), assistant("no")]],
    ),
    "alpaca": (
        [
            {"instruction": "hi", "input": "", "output": "yo", "text": "Below is an instruction"},
            {"instruction": "Add.", "input": "1 and 2", "output": "3"},
            {"instruction": "Add.", "input": " ", "output": "3", "system": "s"},
        ],
        [HI, [user("Add.\n\n1 and 2"), assistant("3")], [system("s"), user("Add."), assistant("3")]],
    ),
    "dialogue": (
        [
            {"text": "\n\nHuman: hi\n\nAssistant: yo"},
            {"text": "Human: he said, Human: hi\n\nAssistant: a\n\nb\n\nHuman: more\r\n\r\nAssistant:no \n"},
        ],
        [HI, [user("he said, Human: hi"), assistant("a\n\nb"), user("more"), assistant("no")]],
    ),
}
PAIR = ([user("q")], assistant("a"), assistant("b"), None)
PAIRS: dict[str, tuple[list[Row], list[tuple[Any, ...]]]] = {
    "preference of texts": (
        [
            {"prompt": "q", "chosen": "a", "rejected": "b"},
            {"prompt": "q", "chosen": "a", "rejected": "b", "system": "s"},
        ],
        [PAIR, ([system("s"), *PAIR[0]], *PAIR[1:])],
    ),
    "preference of chats": (
        [{"prompt": [user("q")], "chosen": [assistant("a")], "rejected": [assistant("b")]}],
        [PAIR],
    ),
    "preference with the prompt implied": (
        [{"chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")], "score_chosen": 1.0}],
        [PAIR],
    ),
    "preference with scores": (
        [
            {"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": 7.5, "score_rejected": 5.0},
            {"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": None, "score_rejected": 5.0},
        ],
        [(*PAIR[:3], 2.5), PAIR],
    ),
    "preference of sharegpt": ([{"prompt": [human("q")], "chosen": gpt("a"), "rejected": gpt("b")}], [PAIR]),
    "dialogue of pairs": (
        [{"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}],
        [PAIR],
    ),
    "dialogue with a prompt of its own": (
        [
            {"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": "\n\nAssistant: a", "rejected": " b"},
            {
                "prompt": "\n\nHuman: q",
                "chosen": "\n\nHuman: q\n\nAssistant: a",
                "rejected": "Human: q\n\nAssistant: b",
            },
        ],
        [PAIR, PAIR],
    ),
}


# ---- rows of every format


# promise: formats
# case: template-07 data-03 dpo-loss-08
@pytest.mark.parametrize("name", [*CHATS, *PAIRS])
def test_rows_of_every_format(tmp_path: Path, name: str) -> None:
    """Written by hand: what a row says, and the turns that it means; these are rendered up to the last loss token."""
    rows, expected = (CHATS | PAIRS)[name]
    kind = ChatDataModule if name in CHATS else PreferenceDataModule
    module = ready(tmp_path, write(tmp_path / "rows.jsonl", rows), kind)
    (part,) = module.parts("train")["train"]
    assert part.encoder.format.name == ("messages" if name.startswith("messages") else name.split()[0])
    if kind is PreferenceDataModule:
        texts = [(module.template.prompt_text(prompt), one["content"] + END, other["content"] + END)
                 for prompt, one, other, _ in expected]  # fmt: skip
        assert pair_texts(module) == texts
        gaps = [math.nan if gap is None else gap for *_, gap in expected]
        assert list(module.examples["train"].column("score_gap")) == pytest.approx(gaps, nan_ok=True)
        return
    in_loss = [[t for t in chat if t["role"] == "assistant" and t.get("train", True)] for chat in expected]
    assert spans(module) == [[turn["content"] + END for turn in turns] for turns in in_loss]
    ends = [turns.index(counted[-1]) + 1 for turns, counted in zip(expected, in_loss, strict=True)]
    rendered = [module.template.render(turns[:end]).text for turns, end in zip(expected, ends, strict=True)]
    assert whole(module) == [text.removesuffix("\n") for text in rendered]


# case: template-03
@pytest.mark.parametrize("name", [*(name for name in CHATS if name != "messages"), *PAIRS])
def test_arrow_changes_nothing(name: str) -> None:
    """Arrow gives each row all keys of all rows, as None; one of mixed texts and parts it refuses."""
    kind: Kind = "chat" if name in CHATS else "preference"
    rows = (CHATS | PAIRS)[name][0]
    stored = Dataset.from_list([{column: row.get(column) for column in columns_of(rows)} for row in rows])
    format = known(rows, kind)
    assert known(list(stored), kind) == format
    assert [to_record(decode_row(row), format) for row in stored] == [to_record(row, format) for row in rows]
    assert [to_record(row, format) for row in stored] == [to_record(row, format) for row in rows]


@pytest.mark.parametrize("name", sorted(CHATS.keys() - {"dialogue", "alpaca"}))
def test_json_text_in_a_cell_changes_nothing(name: str) -> None:
    """As in CSV files."""
    rows, expected = CHATS[name]
    cells = [{key: item if isinstance(item, str) else json.dumps(item) for key, item in row.items()} for row in rows]
    assert known(cells) == known(rows)
    assert [asdict(to_record(cell, known(rows)))["messages"] for cell in cells] == expected


def test_plain_text() -> None:
    """The text unchanged, with its whitespace; nothing but whitespace is a bad row."""
    format = known([{"text": " Once.\n"}])
    assert to_record({"text": " Once.\n"}, format) == Text(" Once.\n")
    for value, reason in ((" \n", "empty text"), (None, "missing value"), (["a"], "content is not text")):
        assert bad({"text": value}, format).reason == reason


# case: template-03
def test_nulls_inside_values_are_left_out_at_any_depth() -> None:
    """Arrow gives every struct all keys of the column, filled with None."""
    row = {"messages": [user("a") | {"calls": None}, {"f": [{"x": 1, "y": None}], "z": 0}], "none": None}
    assert decode_row(row) == {"messages": [user("a"), {"f": [{"x": 1}], "z": 0}], "none": None}


# case: template-03
def test_null_content_beside_tool_calls_is_empty_text() -> None:
    """null -> "", and keys that are null are gone."""
    call = {"role": "assistant", "content": None, "name": None, "tool_calls": [{"name": "add"}]}
    assert turns({"messages": [user("hi"), call]})[1] == assistant("") | {"tool_calls": [{"name": "add"}]}


def test_a_name_begins_a_turn_only_after_an_empty_line() -> None:
    assert turns({"text": "Human: a\nHuman: b\n\nAssistant: c"}) == [user("a\nHuman: b"), assistant("c")]


@pytest.mark.parametrize("text", ["Once.", "Once.\n\nHuman: a\n\nAssistant: b"])
def test_a_text_among_dialogues_is_a_bad_row(text: str) -> None:
    """Two dialogues to one text: the text does not begin with a turn."""
    rows: list[Row] = [*CHATS["dialogue"][0], {"text": text}]
    assert bad(rows[2], known(rows)).reason == "malformed dialogue"


# case: template-10
@pytest.mark.parametrize(
    ("names", "role"),
    [
        ("human user prompter Human USER", "user"),
        ("gpt assistant chatgpt gpt4 gpt-4 bard bing claude gemini model bot chatbot ai function_call", "assistant"),
        ("tool function observation tool_response function_response ipython", "tool"),
    ],
)
def test_names_of_roles(names: str, role: str) -> None:
    for name in names.split():
        said = [{"from": "system", "value": "s"}, {"from": name, "value": "a"}]
        said += [gpt("b")] if role != "assistant" else []
        assert turns({"conversations": said})[1] == {"role": role, "content": "a"}


@pytest.mark.parametrize("message", [human("a"), {"role": "Human", "content": "a"}])
def test_sharegpt_is_named_where_the_user_wants_messages(message: Row) -> None:
    caught = bad({"messages": [message, assistant("b")]}, known([{"messages": HI}], format="messages"))
    assert caught.reason == "unknown role"
    assert "`data.format: sharegpt` reads it" in caught.detail


# ---- pairs


def test_system_text_of_the_conversations_is_kept() -> None:
    """`prompt` holds only the user's turn; the conversations also have the system text."""
    row = {"prompt": "q"} | {name: [system("s"), user("q"), assistant(name)] for name in ("chosen", "rejected")}
    assert pair(row)[0] == [system("s"), user("q")]


@pytest.mark.parametrize("wrap", [str, lambda text: [assistant(text)]])
@pytest.mark.parametrize("prompt", ["q", [user("q")], json.dumps([user("q")])])
def test_texts_and_single_messages_are_the_same_pair(wrap: Any, prompt: Any) -> None:
    assert pair({"prompt": prompt, "chosen": wrap("a"), "rejected": wrap("b")}) == PAIR


@pytest.mark.parametrize(
    "text", ['[{"x": 1}]', "[1, 2]", "[{not json", '{"role": "user"}', '[{"from": "a", "to": "b"}]']
)
def test_responses_that_only_look_like_messages_stay_text(text: str) -> None:
    assert pair({"prompt": "q", "chosen": text, "rejected": "b"})[1] == assistant(text)


def test_messages_printed_by_python_are_not_a_response() -> None:
    """str(list) in a CSV cell would otherwise become the response's text."""
    row = {"prompt": "q", "chosen": str([user("q"), assistant("a")]), "rejected": "b"}
    assert pair(row)[:3] == ([user("q")], assistant("a"), assistant("b"))


# case: template-10
def test_a_prompt_may_end_with_a_tool_result() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "ask"}]}
    row = {"prompt": [user("q"), call, {"role": "tool", "content": "42"}], "chosen": "a", "rejected": "b"}
    assert [turn["role"] for turn in pair(row)[0]] == ["user", "assistant", "tool"]


@pytest.mark.parametrize(
    ("chosen", "rejected", "gap"),
    [(1, 3, -2.0), ("4.5", " 4 ", 0.5), ("", "4", None), (None, None, None), ("-1", 1.5, -2.5), (math.nan, 4, None)],
)
def test_scores_may_be_texts_or_missing(chosen: Any, rejected: Any, gap: float | None) -> None:
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": chosen, "score_rejected": rejected}
    assert pair(row)[3] == gap


@pytest.mark.parametrize("score", ["good", float("inf"), True, [1], 10**400])
def test_scores_that_are_no_numbers_are_bad_rows(score: Any) -> None:
    caught = bad({"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": 1, "score_rejected": score})
    assert caught.reason == "malformed score"
    assert "`score_rejected` must be a number" in caught.detail


# ---- threads


def thread(*messages: tuple[Any, Any, str]) -> list[Row]:
    """Rows of one message: its id, the id of the message that it follows, and its text: `q...` is the user's."""
    return [
        {"message_id": own, "parent_id": above, "role": "prompter" if text[0] == "q" else "assistant", "text": text}
        for own, above, text in messages
    ]


@pytest.mark.parametrize(
    ("rows", "chats", "dropped"),
    [
        # pandas makes 1.0 of 1 where other ids are missing, and NaN of these
        (thread((1, math.nan, "q1"), (2, 1.0, "a1"), (3, 2.0, "q2"), (4, 3.0, "a2")), [["a1", "a2"]], {}),
        (thread(("1", "", "q1"), ("2", "1.0", "a1")), [["a1"]], {}),
        # a response to a message that a slice left out is no response to nothing
        (thread((1, None, "q1"), (2, 1, "a1"), (9, 8, "a9")), [["a1"]], {"no prompt": 1}),
        (
            thread((1, None, "q1"), (2, 1, "a1"), (2, 1, "a2"), (3, None, "q3"), (4, 3, "a3")),
            [["a3"]],
            {"malformed messages": 1},
        ),
    ],
)
def test_threads_with_odd_ids(tmp_path: Path, rows: list[Row], chats: list[list[str]], dropped: dict[str, int]) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    module = ready(tmp_path, str(tmp_path / "rows.jsonl"), max_dropped_share=1.0)
    assert spans(module) == [[f"{response}{END}" for response in chat] for chat in chats]
    assert module.reports["train"].dropped == dropped


# ---- bad rows: those of messages and of pairs of texts are in test_malformed.py


@pytest.mark.parametrize(
    ("row", "reason", "named"),
    [
        ({"conversations": [human("a"), gpt(None)]}, "null content", "conversations[1].value is null"),
        ({"conversations": [human("a"), {"from": "x", "value": "b"}]}, "unknown role", "conversations[1].from is 'x'"),
        ({"conversations": [human("a"), gpt("")]}, "empty response", "conversations[1]"),
        ({"messages": [system("s"), *HI], "system": "t"}, "two system texts", "`system`"),
        ({"messages": HI, "system": 5}, "content is not text", "system must be text, got 5"),
        ({"prompt": " ", "completion": "a"}, "no prompt", "`prompt`"),
        ({"prompt": "q", "completion": ""}, "empty response", "completion"),
        ({"prompt": "q", "completion": [user("a")]}, "response is not an assistant turn", "completion"),
        ({"prompt": [user("q")], "completion": HI}, "odd role order", "prompt[0] and completion[0]"),
        ({"prompt": 5, "completion": "a"}, "content is not text", "prompt must be text, or messages, got 5"),
        ({"instruction": "", "input": " ", "output": "a"}, "no prompt", "`instruction`"),
        ({"instruction": "q", "input": None, "output": " "}, "empty response", "output"),
        ({"instruction": "q", "output": 5}, "content is not text", "output must be text, got 5"),
        ({"text": "Human: a\n\nAssistant: "}, "empty response", "text[1]"),
        ({"text": "Human: a\n\nHuman: b\n\nAssistant: c"}, "odd role order", "text[0] and text[1]"),
        (
            {"chosen": "Human: q\n\nAssistant: a", "rejected": "Human: r\n\nAssistant: b"},
            "prompts differ",
            "not the same in chosen and rejected",
        ),
        (
            {"chosen": "Human: q\n\nAssistant: a", "rejected": "Human: q\n\nAssistant: a\n\nHuman: c"},
            "response is not an assistant turn",
            "`rejected`",
        ),
        ({"chosen": "Human: q\n\nAssistant: a", "rejected": "Human: q\n\nAssistant:"}, "empty response", "rejected"),
    ],
)
def test_bad_rows_name_the_column_and_the_message(row: Row, reason: str, named: str) -> None:
    caught = bad(row)
    assert caught.reason == reason
    assert named in caught.detail


def test_details_are_short_and_valid_unicode() -> None:
    """Arrow refuses a lone surrogate; a role of a million characters helps nobody, nor do 1,000 long columns."""
    chats = known([{"messages": HI}])
    assert bad({"messages": [{"role": "\ud800" * 10**6, "content": "a"}]}, chats).detail.encode()
    assert len(bad({"messages": [{"role": "r" * 10**6, "content": "a"}]}, chats).detail) < 300
    assert len(bad({f"{number}{'x' * 1000}": 1 for number in range(1000)}, chats).detail) < 1500


@pytest.mark.parametrize("depth", [500, 200_000])
def test_what_nests_too_deeply_is_a_bad_row(depth: int) -> None:
    """JSON text of so many lists, and of an integer that Python refuses to read."""
    for value in ("[" * depth, f"[{'9' * 5000}]", [10**5000]):
        assert bad({"messages": value}).reason == "malformed messages"


# ---- real rows
