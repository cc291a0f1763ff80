"""Every format becomes the same chats and pairs, whatever the rows look like."""

import json
from dataclasses import asdict
from typing import Any

import pytest
from datasets import Dataset

from smollit.data.formats.converters import to_record
from smollit.data.formats.detect import recognise
from smollit.data.formats.drop_reason import BadRow
from smollit.data.formats.format import Format
from smollit.data.formats.types import Conversation, Kind, Preference, Text, drop_nulls

Row = dict[str, Any]


def system(content: Any) -> Row:
    return {"role": "system", "content": content}


def user(content: Any) -> Row:
    return {"role": "user", "content": content}


def assistant(content: Any) -> Row:
    return {"role": "assistant", "content": content}


def human(value: Any) -> Row:
    return {"from": "human", "value": value}


def gpt(value: Any) -> Row:
    return {"from": "gpt", "value": value}


def columns_of(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def known(rows: list[Row], kind: Kind = "chat", **options: Any) -> Format:
    return recognise(columns_of(rows), rows, kind=kind, **options)


def bad(row: Row, format: Format) -> BadRow:
    with pytest.raises(BadRow) as caught:
        to_record(row, format)
    return caught.value


HI = [user("hi"), assistant("yo")]
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
    "prompt_completion": (
        [{"prompt": "hi", "completion": "yo"}, {"prompt": "hi", "completion": "yo", "system": "s"}],
        [HI, [system("s"), *HI]],
    ),
    "prompt_completion of chats": (
        [
            {"prompt": [user("hi")], "completion": [assistant("yo")]},
            {"prompt": [*HI, user("more")], "completion": [assistant("no")]},
        ],
        # The answers of the prompt are context.
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


# case: template-07
@pytest.mark.parametrize("name", CHATS)
def test_chats_of_every_format(name: str) -> None:
    """Written by hand: what a row says, and the turns that it means."""
    rows, expected = CHATS[name]
    format = known(rows)
    assert format.name == ("messages" if name.startswith("messages") else name.split()[0])
    records = [to_record(row, format) for row in rows]
    assert [record.messages for record in records if isinstance(record, Conversation)] == expected


# case: data-03
@pytest.mark.parametrize("name", PAIRS)
def test_pairs_of_every_format(name: str) -> None:
    rows, expected = PAIRS[name]
    format = known(rows, "preference")
    assert format.name == name.split()[0]
    records = [to_record(row, format) for row in rows]
    assert [(r.prompt, r.chosen, r.rejected, r.score_gap) for r in records if isinstance(r, Preference)] == expected


# case: template-03
@pytest.mark.parametrize("name", [*(name for name in CHATS if name != "messages"), *PAIRS])
def test_arrow_changes_nothing(name: str) -> None:
    """Arrow gives each row all keys of all rows, as None; one of mixed texts and parts it refuses."""
    kind: Kind = "chat" if name in CHATS else "preference"
    rows = (CHATS if kind == "chat" else PAIRS)[name][0]
    stored = Dataset.from_list([{column: row.get(column) for column in columns_of(rows)} for row in rows])
    filled = [{column: drop_nulls(value) for column, value in row.items()} for row in stored]
    assert recognise(stored.column_names, list(stored), kind=kind) == known(rows, kind)
    format = known(rows, kind)
    assert [to_record(row, format) for row in filled] == [to_record(row, format) for row in rows]
    assert [to_record(row, format) for row in stored] == [to_record(row, format) for row in rows]


@pytest.mark.parametrize("name", sorted(CHATS.keys() - {"dialogue", "alpaca"}))
def test_json_text_in_a_cell_changes_nothing(name: str) -> None:
    """As in CSV files."""
    rows, expected = CHATS[name]
    cells = [
        {key: value if isinstance(value, str) else json.dumps(value) for key, value in row.items()} for row in rows
    ]
    format = known(cells)
    assert format == known(rows)
    assert [asdict(to_record(cell, format))["messages"] for cell in cells] == expected


def test_plain_text() -> None:
    """The text as it is, with its blanks; nothing but blanks is a bad row."""
    format = known([{"text": " Once.\n"}])
    assert to_record({"text": " Once.\n"}, format) == Text(" Once.\n")
    assert bad({"text": " \n"}, format).reason == "empty text"
    assert bad({"text": None}, format).reason == "missing value"
    assert bad({"text": ["a"]}, format).reason == "content is not text"


# case: template-10
def test_a_completion_may_continue_the_prompt() -> None:
    """prompt [q, "The sum"] + " is 4": two assistant turns in a row, of which the first is context."""
    row = {"prompt": [user("q"), assistant("The sum")], "completion": " is 4"}
    record = to_record(row, known([row]))
    assert asdict(record)["messages"] == [user("q"), assistant("The sum") | {"train": False}, assistant(" is 4")]
    row = {"prompt": [user("q"), assistant("x"), assistant("y")], "completion": "z"}
    assert bad(row, known([row])).reason == "odd role order"


@pytest.mark.parametrize(
    ("row", "cause", "named"),
    [
        ({"conversations": [human("a"), gpt(None)]}, "null content", "conversations[1].value is null"),
        ({"conversations": [human("a"), {"from": "x", "value": "b"}]}, "unknown role", "conversations[1].from is 'x'"),
        ({"conversations": [human("a"), gpt("")]}, "empty response", "conversations[1]"),
        (
            {"conversations": [human("a"), human("b"), gpt("c")]},
            "odd role order",
            "conversations[0] and conversations[1]",
        ),
        ({"messages": [system("s"), *HI], "system": "t"}, "two system texts", "`system`"),
        ({"messages": HI, "system": 5}, "content is not text", "system must be text, got 5"),
        ({"prompt": " ", "completion": "a"}, "no prompt", "`prompt`"),
        ({"prompt": "q", "completion": ""}, "empty response", "completion"),
        ({"prompt": "q", "completion": [user("a")]}, "response is not an assistant turn", "completion"),
        ({"prompt": [user("q")], "completion": HI}, "odd role order", "prompt[0] and completion[0]"),
        ({"prompt": 5, "completion": "a"}, "malformed messages", "prompt"),
        ({"instruction": "", "input": " ", "output": "a"}, "no prompt", "`instruction`"),
        ({"instruction": "q", "input": None, "output": " "}, "empty response", "output"),
        ({"instruction": "q", "output": 5}, "content is not text", "output must be text, got 5"),
        ({"text": "Human: a\n\nAssistant: "}, "empty response", "text[1]"),
        ({"text": "Human: a\n\nHuman: b\n\nAssistant: c"}, "odd role order", "text[0] and text[1]"),
    ],
)
def test_bad_rows_name_the_place(row: Row, cause: str, named: str) -> None:
    caught = bad(row, known([row]))
    assert caught.reason == cause
    assert named in caught.detail


@pytest.mark.parametrize("text", ["Once.", "Once.\n\nHuman: a\n\nAssistant: b"])
def test_a_text_among_dialogues_is_a_bad_row(text: str) -> None:
    """Two dialogues to one text: the text does not begin with a turn."""
    rows: list[Row] = [*CHATS["dialogue"][0], {"text": text}]
    assert bad(rows[2], known(rows)).reason == "malformed dialogue"


def test_a_name_begins_a_turn_only_behind_an_empty_line() -> None:
    row = {"text": "Human: a\nHuman: b\n\nAssistant: c"}
    assert to_record(row, known([row])) == Conversation([user("a\nHuman: b"), assistant("c")])


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
        row = {"conversations": [{"from": "system", "value": "s"}, {"from": name, "value": "a"}]}
        if role != "assistant":
            row["conversations"].append(gpt("b"))
        assert asdict(to_record(row, known([row])))["messages"][1] == {"role": role, "content": "a"}


def test_missing_columns_make_a_short_detail() -> None:
    row = {f"{number}{'x' * 1000}": 1 for number in range(1000)}
    assert len(bad(row, recognise(["messages"], [], kind="chat")).detail) < 1500


@pytest.mark.parametrize(
    ("chosen", "rejected", "cause"),
    [
        ("Human: q\n\nAssistant: a", "Human: r\n\nAssistant: b", "prompts differ"),
        ("Human: q\n\nAssistant: a", "Human: q\n\nAssistant: a\n\nHuman: c", "response is not an assistant turn"),
        ("Human: q\n\nAssistant: a", "Human: q\n\nAssistant:", "empty response"),
    ],
)
def test_bad_pairs_of_dialogues(chosen: str, rejected: str, cause: str) -> None:
    row = {"chosen": chosen, "rejected": rejected}
    assert bad(row, known([row], "preference")).reason == cause


@pytest.mark.parametrize(
    ("chosen", "rejected", "gap"),
    [(1, 3, -2.0), ("4.5", " 4 ", 0.5), ("", "4", None), (None, None, None), ("-1", 1.5, -2.5)],
)
def test_scores_may_be_texts_or_missing(chosen: Any, rejected: Any, gap: float | None) -> None:
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": chosen, "score_rejected": rejected}
    assert asdict(to_record(row, known([row], "preference")))["score_gap"] == gap


@pytest.mark.parametrize("score", ["good", "nan", float("nan"), float("inf"), True, [1], 10**400])
def test_scores_that_are_no_numbers_are_bad_rows(score: Any) -> None:
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": 1, "score_rejected": score}
    caught = bad(row, known([row], "preference"))
    assert caught.reason == "malformed score"
    assert "`score_rejected` must be a number" in caught.detail


# ---- real rows


@pytest.mark.shared
@pytest.mark.parametrize(("name", "kind"), [("ultrachat_200k", "chat"), ("ultrafeedback_binarized", "preference")])
def test_real_rows_keep_their_turns(shared: Any, name: str, kind: Kind) -> None:
    """The columns as they are: of 2,590 rows, 2 have an empty answer; 136 pairs have equal scores."""
    files = sorted((shared / "data" / name / "data").glob("*.parquet"))
    rows = [row for file in files for row in Dataset.from_parquet(str(file))]
    format = known(rows[:100], kind)
    records, causes = [], []
    for row in rows:
        try:
            record = to_record(row, format)
        except BadRow as caught:
            causes.append(caught.reason)
            continue
        records.append(record)
        if isinstance(record, Conversation):
            assert record.messages == row["messages"]
        if isinstance(record, Preference):
            assert [*record.prompt, record.chosen] == row["chosen"]
            assert [*record.prompt, record.rejected] == row["rejected"]
    assert causes == ([] if kind == "chat" else ["empty response"] * 2)
    assert sum(asdict(record).get("score_gap") == 0 for record in records) == (0 if kind == "chat" else 136)
