"""10,000 malformed rows: no crash, each counted with a reason, and the good rows among them are as if alone."""

import json
import math
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from smollit.data import ChatDataModule, UltraChatDataModule, UltraFeedbackDataModule
from tests.data.conftest import Row, assistant, ready, user
from tests.data.sources.conftest import write

LONG = "long " * 400  # more than `max_length` tokens
LISTS = ["[]", "[[]]", "[{}]", "[null]", '[{"role": "user", "content": "q"}]', '[{"role": "user"', "{'role': 'user'}"]
TEXTS = ["", " ", "\n\n", "\ud800", "a\udfffb", "\x00", "\x1b[2J", "\ufeff", "\u202e", "<|im_end|>", "<|im_start|>",
         "x<|im_end|>\n<|im_start|>assistant\nhi", "<|endoftext|>", "{{ 1 / 0 }}", "{% endfor %}", "Human:", "None",
         "\n\nHuman: a\n\nAssistant: b", "nan", "-1", "\ue000\ue001", LONG, "\U0010ffff"]  # fmt: skip
NUMBERS = [0, 1, -1, 2**63, -(2**70), 10**400, 0.5, math.nan, math.inf, -math.inf, True, False]
ROLES = ["", "User", "USER ", "bot", "human", "gpt", "root", "system", "tool", "assistant", "user", "\ud800", None, 5,
         []]  # fmt: skip
PARTS = [[{"type": "text", "text": "a"}], [{"type": "image_url", "image_url": {"url": "x"}}], [{"type": "text"}], ["a"],
         [None], [[]], [{"text": "a"}], [{"type": None, "text": "a"}], [{"type": "text", "text": 5}]]  # fmt: skip
CALLS = [{"tool_calls": [{"name": "f", "arguments": {"x": "<|im_end|>"}}]}, {"tool_calls": []}, {"tool_calls": "x"},
         {"train": "no"}, {"train": True, "weight": 0}, {"weight": 2}, {"weight": math.nan}, {"train": None},
         {"name": 5, "tool_call_id": ["x"]}, {"content": None, "tool_calls": None}]  # fmt: skip


# What a detail names: a column, a message, or a position in the text or its tokens.
POSITION = re.compile(
    r"(messages|conversations|prompt|completion|chosen|rejected|instruction|output|input|text|system|score_\w+)\b"
    r"|\bcharacter \d|\btoken"
)


def deep(depth: int) -> Any:
    value: Any = "x"
    for _ in range(depth):
        value = [value]
    return value


POISONS: list[Any] = [None, [], {}, [[]], [None], [{}], {"": {}}, deep(60), *LISTS, *TEXTS, *NUMBERS, *PARTS, *CALLS]


# ---- one good row of each format


def messages(name: str) -> Row:
    return {"messages": [user(f"q {name}"), assistant("a"), user("q2"), assistant(f"b {name}")]}


def sharegpt(name: str) -> Row:
    return {"conversations": [{"from": "human", "value": f"q {name}"}, {"from": "gpt", "value": f"a {name}"}]}


def prompt_completion(name: str) -> Row:
    return {"prompt": [user(f"q {name}")], "completion": [assistant(f"a {name}")]}


def alpaca(name: str) -> Row:
    return {"instruction": f"do {name}", "input": "x", "output": f"done {name}", "system": "be kind"}


def text(name: str) -> Row:
    return {"text": f"plain {name}"}


def dialogue(name: str) -> Row:
    return {"text": f"\n\nHuman: q {name}\n\nAssistant: a {name}"}


def pair(name: str) -> Row:
    return {
        "prompt": [user(f"q {name}")],
        "chosen": [user(f"q {name}"), assistant(f"yes {name}")],
        "rejected": [user(f"q {name}"), assistant(f"no {name}")],
        "score_chosen": 8.0,
        "score_rejected": 3,
    }


def text_pair(name: str) -> Row:
    return {"prompt": f"q {name}", "chosen": f"yes {name}", "rejected": f"no {name}"}


def dialogue_pair(name: str) -> Row:
    start = f"\n\nHuman: q {name}\n\nAssistant:"
    return {"chosen": f"{start} yes {name}", "rejected": f"{start} no {name}"}


# Maker of a good row -> its format, and whether it is a pair.
FORMATS: dict[Callable[[str], Row], tuple[str, bool]] = {
    messages: ("messages", False),
    sharegpt: ("sharegpt", False),
    prompt_completion: ("prompt_completion", False),
    alpaca: ("alpaca", False),
    text: ("text", False),
    dialogue: ("dialogue", False),
    pair: ("preference", True),
    text_pair: ("preference", True),
    dialogue_pair: ("dialogue", True),
}
EACH, GOOD = 1_112, 8  # 9 formats: 10,008 malformed rows


def spoil(value: Any, draw: random.Random) -> Any:
    """The value with one fault, at any depth."""
    inside = isinstance(value, (dict, list)) and len(value) > 0 and draw.random() < 0.8
    if not inside:
        return draw.choice(POISONS)
    if isinstance(value, dict):
        return spoil_object(dict(value), draw)
    place = draw.randrange(len(value))
    faults: list[Callable[[], Any]] = [
        lambda: [*value[:place], spoil(value[place], draw), *value[place + 1 :]],
        lambda: [*value[:place], *value[place + 1 :]],  # a turn is lost
        lambda: [*value[: place + 1], *value[place:]],  # one comes twice
        lambda: value[::-1],
        lambda: [*value, draw.choice(POISONS)],
    ]
    return draw.choice(faults)()


def spoil_object(value: Row, draw: random.Random) -> Row:
    key = draw.choice(list(value))
    fault = draw.randrange(6)
    if fault == 0:
        del value[key]
    elif fault == 1:
        value[draw.choice(["", "Role", "\ud800", "5", "null", key + " "])] = value.pop(key)
    elif fault == 2 and "role" in value:
        value["role"] = draw.choice(ROLES)
    elif fault == 3 and "content" in value:
        value |= draw.choice(CALLS)
    elif fault == 4:
        value |= {draw.choice(["extra", "system", "from", "prompt"]): draw.choice(POISONS)}
    else:
        value[key] = spoil(value[key], draw)
    return value


def spoiled_rows(make: Callable[[str], Row], number: int) -> list[Row]:
    """Rows with one to three faults each; the seed is their format's name."""
    draw = random.Random(make.__name__)
    rows = []
    for index in range(number):
        row = make(str(index))
        for _ in range(draw.randint(1, 3)):
            row = spoil_object(row, draw) if row else {}
        rows.append(row)
    return rows


def mixed(bad: list[Row], good: list[Row]) -> tuple[list[Row], list[int]]:
    """All rows, the good ones at equal distances, and their indices."""
    step = len(bad) // len(good)
    rows = [row for n, each in enumerate(good) for row in [*bad[n * step : (n + 1) * step], each]]
    return rows + bad[len(good) * step :], [(n + 1) * step + n for n in range(len(good))]


# ---- through the data module


def set_up(tmp_path: Path, dataset: str, is_pair: bool, **options: Any) -> ChatDataModule:
    kind = UltraFeedbackDataModule if is_pair else UltraChatDataModule
    return ready(tmp_path, dataset, kind, **{"train_split": "train", "max_dropped_share": 1.0} | options)


def kept_rows(made: ChatDataModule) -> dict[int, str]:
    """Kept examples by their row number."""
    return {row.pop("row"): repr(row) for row in made.examples["train"].rows.to_list()}  # repr: NaN is not NaN


def details(made: ChatDataModule) -> list[tuple[str, str]]:
    """Reason and detail of every row, straight from the encoder."""
    (part,) = made.parts("train")["train"]
    columns = part.encoder(part.source.rows[:], list(range(len(part.source.rows))))
    return list(zip(columns["problem"], columns["detail"], strict=True))


def check(made: ChatDataModule, alone: ChatDataModule, good: list[int]) -> None:
    """Every row is kept or has a reason and a position; the good rows are kept, and as if alone."""
    report, kept = made.reports["train"], kept_rows(made)
    assert report.kept + sum(report.dropped.values()) == report.rows
    assert len(kept) == report.kept
    said = details(made)
    assert Counter(reason for reason, _ in said if reason) == report.dropped
    assert set(kept) == {row for row, (reason, _) in enumerate(said) if not reason}
    assert all(POSITION.search(detail) and len(detail) < 1000 for reason, detail in said if reason), said
    assert [kept[row] for row in good] == list(kept_rows(alone).values())


@pytest.mark.slow
@pytest.mark.parametrize("make", FORMATS, ids=lambda make: make.__name__)
def test_malformed_json_lines_are_counted_and_leave_the_others_alone(tmp_path: Path, make: Any) -> None:
    """1,112 malformed rows and 8 good ones of each format: 10,008 in all."""
    name, is_pair = FORMATS[make]
    good = [make(f"good {number}") for number in range(GOOD)]
    rows, places = mixed(spoiled_rows(make, EACH), good)
    alone = set_up(tmp_path, write(tmp_path / "good.jsonl", good), is_pair, format=name)
    made = set_up(tmp_path, write(tmp_path / "all.jsonl", rows), is_pair, format=name)
    assert made.reports["train"].rows == EACH + GOOD
    assert sum(made.reports["train"].dropped.values()) > EACH / 4
    check(made, alone, places)


@pytest.mark.slow
@pytest.mark.parametrize("make", [messages, pair], ids=lambda make: make.__name__)
def test_two_processes_count_what_one_counts(tmp_path: Path, make: Any) -> None:
    """1,400 rows: above datasets' batch of 1,000, so that both have some. One cache each."""
    name, is_pair = FORMATS[make]
    dataset = write(tmp_path / "all.jsonl", mixed(spoiled_rows(make, 1_400), [make("good")])[0])
    one, two = (
        set_up(tmp_path, dataset, is_pair, format=name, num_proc=number, cache_dir=str(tmp_path / str(number)))
        for number in (1, 2)
    )
    assert one.reports == two.reports
    assert kept_rows(one) == kept_rows(two)


def as_cell(value: Any) -> str:
    """A CSV cell: a text, or the JSON text of anything else; without what UTF-8 can't hold."""
    cell = value if isinstance(value, str) else json.dumps(value)
    return cell.encode(errors="ignore").decode()


def as_column(values: list[Any]) -> list[Any]:
    """Values of the type that most of them have; the others are null. Of messages, each key likewise."""
    most = Counter(type(value) for value in values if value is not None).most_common(1)[0][0]
    kept = [value if type(value) is most else None for value in values]
    if most is str:
        return [value and value.encode(errors="ignore").decode() for value in kept]
    if most is not list:
        return [None if value is None or abs(value) > 2**62 else value for value in kept]
    turns = [[turn if isinstance(turn, dict) else None for turn in value] if value else value for value in kept]
    return [value and [turn and {key: as_text(turn.get(key)) for key in ("role", "content")} for turn in value]
            for value in turns]  # fmt: skip


def as_text(value: Any) -> str | None:
    return value.encode(errors="ignore").decode() if isinstance(value, str) else None


@pytest.mark.slow
@pytest.mark.parametrize("make", [messages, pair, text_pair, alpaca], ids=lambda make: make.__name__)
@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_malformed_tables_are_counted_too(tmp_path: Path, make: Any, ending: str) -> None:
    """The same rows as far as Arrow, or text cells, can hold them: nulls in Arrow, JSON texts in CSV."""
    name, is_pair = FORMATS[make]
    good = [make(f"good {number}") for number in range(GOOD)]
    rows, places = mixed(spoiled_rows(make, 400), good)
    columns = {column: [row.get(column) for row in rows] for column in good[0]}
    dataset = str(tmp_path / f"all.{ending}")
    if ending == "csv":
        Dataset.from_dict({key: [*map(as_cell, values)] for key, values in columns.items()}).to_csv(dataset)
    else:
        Dataset.from_dict({key: as_column(values) for key, values in columns.items()}).to_parquet(dataset)
    alone = set_up(tmp_path, write(tmp_path / "good.jsonl", good), is_pair, format=name)
    check(set_up(tmp_path, dataset, is_pair, format=name), alone, places)


# ---- faults by name


CHATS: dict[str, tuple[Row, str, str]] = {
    # what is wrong: row, reason, pattern of the detail
    "not a list": ({"messages": 5}, "malformed messages", "messages must be a list"),
    "a text": ({"messages": "hello"}, "malformed messages", "messages is a text that is not JSON"),
    "half a list": ({"messages": "[{'role': 'user'"}, "malformed messages", "is a text that is not JSON"),
    "nothing": ({}, "missing value", "`messages` is null or missing"),
    "null": ({"messages": None}, "missing value", "`messages` is null or missing"),
    "empty": ({"messages": []}, "empty conversation", "messages is an empty list"),
    "null turn": ({"messages": [user("q"), None]}, "malformed messages", r"messages\[1\] must have `role`"),
    "nested": ({"messages": [[user("q")]]}, "malformed messages", r"messages\[0\] must have `role`"),
    "lists": ({"messages": {"role": ["user"], "content": []}}, "malformed messages", "must be a list"),
    "null content": ({"messages": [user("q"), assistant(None)]}, "null content", r"messages\[1\].content"),
    "no content": ({"messages": [user("q"), {"role": "assistant"}]}, "null content", r"messages\[1\].content"),
    "number": ({"messages": [user("q"), assistant(5)]}, "content is not text", r"messages\[1\].content .* got 5"),
    "object": ({"messages": [user({"a": 1}), assistant("a")]}, "content is not text", r"\[0\].content .* got dict"),
    "NaN": ({"messages": [user(math.nan), assistant("a")]}, "content is not text", r"messages\[0\].content .* got nan"),
    "huge": ({"messages": [user(10**400), assistant("a")]}, "content is not text", r"messages\[0\].content .* got int"),
    "image": ({"messages": [user([{"type": "image"}]), assistant("a")]}, "content is not text", "type 'image'"),
    "text part": ({"messages": [user(["a"]), assistant("a")]}, "content is not text", r"content\[0\] .* type 'str'"),
    "role": ({"messages": [{"role": "root", "content": "q"}, assistant("a")]}, "unknown role", "'root'"),
    "role list": ({"messages": [{"role": ["user"], "content": "q"}]}, "unknown role", r"messages\[0\].role is list"),
    "no role": ({"messages": [{"content": "q"}, assistant("a")]}, "unknown role", r"\[0\].role is null or missing"),
    "two exchanges": ({"messages": [{"input": "q", "output": "a"}, {"question": "r", "answer": "b"}]}, "unknown role",
                      r"\[0\].role is null or missing"),
    "late system": ({"messages": [user("q"), {"role": "system", "content": "s"}]}, "odd role order", r"messages\[1\]"),
    "two users": ({"messages": [user("q"), user("r"), assistant("a")]}, "odd role order", "both user turns"),
    "two responses": ({"messages": [user("q"), assistant("a"), assistant("b")]}, "odd role order", "both assistant"),
    "no response": ({"messages": [user("q")]}, "no assistant turn", r"messages\[0\]"),
    "blank response": ({"messages": [user("q"), assistant(" \n")]}, "empty response", r"messages\[1\] has no text"),
    "blank later": ({"messages": [user("q"), assistant("a"), user("r"), assistant([])]}, "empty response", r"\[3\]"),
    "surrogate": ({"messages": [user("q\ud800"), assistant("a")]}, "text is not valid Unicode", "lone surrogate"),
    "end inside": ({"messages": [user("q"), assistant("a<|im_end|>b")]}, "end marker in a response", r"messages\[1\]"),
    "weight": ({"messages": [user("q"), assistant("a") | {"weight": 2}]}, "malformed weight", r"messages\[1\].weight"),
    "half": ({"messages": [user("q"), assistant("a") | {"weight": 0.5}]}, "malformed weight", "1 or 0, got 0.5"),
    "train text": ({"messages": [user("q"), assistant("a") | {"train": "false"}]}, "malformed weight", "got 'false'"),
    "disagree": ({"messages": [user("q"), assistant("a") | {"weight": 0, "train": True}]},
                 "malformed weight", "disagree"),
    "untrained": ({"messages": [user("q"), assistant("a") | {"train": False}]}, "no loss tokens", "no message"),
    "all cut": ({"messages": [user("q" * 999), assistant("a")]}, "no loss tokens", "max_length is 128"),
    "deep": ({"messages": [user("q"), assistant(deep(900))]}, "content is not text", r"messages\[1\].content"),
}  # fmt: skip
PAIRS: dict[str, tuple[Row, str, str]] = {
    "no prompt": ({"chosen": "a", "rejected": "b"}, "no prompt", "there is no `prompt`"),
    "empty prompt": ({"prompt": "", "chosen": "a", "rejected": "b"}, "no prompt", "there is no `prompt`"),
    "no chosen": ({"prompt": "q", "rejected": "b"}, "missing value", "`chosen` is null or missing"),
    "null rejected": ({"prompt": "q", "chosen": "a", "rejected": None}, "missing value", "`rejected` is null"),
    "equal": ({"prompt": "q", "chosen": "a", "rejected": "a"}, "identical responses", "same text"),
    "equal when cut": ({"prompt": "q", "chosen": LONG + "a", "rejected": LONG + "b"},
                       "identical responses after truncation", "token"),
    "long prompt": ({"prompt": LONG, "chosen": "a", "rejected": "b"}, "prompt too long", "max_length is 128"),
    "blank response": ({"prompt": "q", "chosen": "a", "rejected": " "}, "empty response", "rejected has no text"),
    "response of a user": ({"prompt": "q", "chosen": "a", "rejected": [user("b")]},
                     "response is not an assistant turn", "`rejected`"),
    "user last": ({"prompt": "q", "chosen": "a", "rejected": [user("q"), user("b")]},
                  "response is not an assistant turn", "`rejected`"),
    "response of a tool": ({"prompt": "q", "chosen": "a", "rejected": [{"role": "tool", "content": "b"}]},
                     "response is not an assistant turn", "`rejected`"),
    "two users": ({"prompt": [user("q"), user("r")], "chosen": "a", "rejected": "b"}, "odd role order", r"prompt\[1\]"),
    "two responses": ({"prompt": [user("q"), assistant("x"), assistant("y")], "chosen": "a", "rejected": "b"},
                    "odd role order", r"prompt\[1\] and prompt\[2\]"),
    "other prompt": ({"prompt": "q", "chosen": [user("r"), assistant("a")], "rejected": [user("r"), assistant("b")]},
                     "prompts differ", "`prompt` is not what chosen and rejected begin with"),
    "two prompts": ({"chosen": [user("q"), assistant("a")], "rejected": [user("r"), assistant("b")]},
                    "prompts differ", "chosen"),
    "score": ({"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": "high", "score_rejected": 1},
              "malformed score", "`score_chosen` must be a number, got 'high'"),
    "end inside": ({"prompt": "q", "chosen": "a<|im_end|>", "rejected": "b"}, "end marker in a response", "im_end"),
    "system twice": ({"prompt": [{"role": "system", "content": "s"}, user("q")], "chosen": "a", "rejected": "b",
                      "system": "t"},
                     "two system texts", "`system`"),
}  # fmt: skip


# case: template-03 template-07 data-03 data-11
@pytest.mark.parametrize("is_pair", [False, True])
def test_each_fault_has_its_reason_and_names_its_place(tmp_path: Path, is_pair: bool) -> None:
    """In one file after 30 good rows, so that the format is detected and most rows can be used."""
    faults = PAIRS if is_pair else CHATS
    scores = {"score_chosen": 2, "score_rejected": 1}
    good = [text_pair(str(n)) | scores if is_pair else messages(str(n)) for n in range(30)]
    made = set_up(tmp_path, write(tmp_path / "all.jsonl", [*good, *(row for row, _, _ in faults.values())]), is_pair)
    assert set(kept_rows(made)) == set(range(30))
    for (name, (_, reason, place)), said in zip(faults.items(), details(made)[30:], strict=True):
        assert said[0] == reason, (name, said)
        assert re.search(place, said[1]), (name, said)
