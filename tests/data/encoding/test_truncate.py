"""Rows that are too long: truncated on the right, by whole turns, dropped or refused; by counting tokens."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smollit.data.encoding.encoder import Encoder
from smollit.data.formats.detection.detect import detect_format
from smollit.data.formats.types import Kind

Row = dict[str, Any]
Encode = Callable[..., Row]
Words = Callable[..., str]


def turn(role: str, content: str) -> Row:
    return {"role": role, "content": content}


@pytest.fixture
def example(make_encoder: Callable[..., Encoder], encode: Callable[..., list[Row]], bare: str) -> Encode:
    """Example of a row, rendered as bare contents, so that lengths are those of the contents."""

    def run(row: Row, kind: Kind, max_length: int, truncate: str) -> Row:
        form = detect_format(list(row), [row], kind=kind)
        return encode(make_encoder(kind, max_length, template=bare, format=form, truncate=truncate), [row])[0]

    return run


# ---- chats


@pytest.mark.parametrize(
    ("max_length", "length", "spans"),
    [
        (23, 23, [5, 8, 12, 16, 20, 23]),  # all of 2 + 3 + 3 + 4 + 4 + 4 + 3
        (22, 17, [6, 10, 14, 17]),  # without the first turns, 3 + 3
        (17, 17, [6, 10, 14, 17]),
        (16, 9, [6, 9]),  # without 4 + 4 too: 2 + 4 + 3
        (8, 8, [6, 8]),  # the last exchange alone is too long: truncated on the right
        (7, 7, [6, 7]),
    ],
)
def test_whole_turns_are_cut_from_the_start_and_the_system_text_stays(
    example: Encode, words: Words, max_length: int, length: int, spans: list[int]
) -> None:
    """System 2; turns 3 + 3, 4 + 4, 4 + 3."""
    sizes = [("user", 3), ("assistant", 3), ("user", 4), ("assistant", 4), ("user", 4), ("assistant", 3)]
    chat = {"messages": [turn("system", words(2)), *(turn(role, words(size)) for role, size in sizes)]}
    found = example(chat, "chat", max_length, "left-turns")
    assert (found["length"], found["spans"]) == (length, spans)
    assert (found["truncated"], found["full_length"]) == (max_length < 23, 23)


# case: F8
@pytest.mark.parametrize(
    ("sizes", "kept"),
    [
        ((1, 1, 6, 1), [1, 1]),  # the last question alone is too long: the exchange before it is kept
        ((2, 2, 1, 1, 6, 1), [2, 2, 1, 1]),  # both exchanges before it fit
        ((3, 2, 1, 1, 6, 1), [1, 1]),  # of 3 + 2 + 1 + 1 only the last exchange fits into 6
        ((2, 2, 6, 1, 1, 5), [1, 5]),  # the last exchange fits
        ((1, 1, 1, 1, 6, 1, 6, 1), [1, 1, 1, 1]),  # the longest window, not the latest
        ((6, 1, 7, 1), None),  # no response fits after its question
    ],
)
def test_the_longest_window_of_turns_that_trains_something_is_kept(
    example: Encode, words: Words, sizes: tuple[int, ...], kept: list[int] | None
) -> None:
    """Turns of user and assistant, each so many tokens, into 6."""
    roles = ("user", "assistant") * (len(sizes) // 2)
    chat = {"messages": [turn(role, words(size)) for role, size in zip(roles, sizes, strict=True)]}
    found = example(chat, "chat", 6, "left-turns")
    if kept is None:
        assert found["problem"] == "no loss tokens"
        return
    ends = [sum(kept[: n + 1]) for n in range(len(kept))]
    assert found["spans"] == ends
    assert found["full_length"] == sum(sizes)


# case: mask-06
@pytest.mark.parametrize(
    ("truncate", "cause"),
    [("drop", "longer than max_length"), ("error", "longer than max_length, which `data.truncate` refuses")],
)
@pytest.mark.parametrize("kind", ["chat", "preference"])
def test_rows_may_be_dropped_or_refused_instead_of_cut(
    example: Encode, words: Words, kind: Kind, truncate: str, cause: str
) -> None:
    """6 + 8 = 14 tokens fit into 14, not into 13; of pairs, the longer response counts."""
    chat = {"messages": [turn("user", words(6)), turn("assistant", words(8))]}
    row = chat if kind == "chat" else {"prompt": words(6), "chosen": words(2), "rejected": words(8)}
    assert example(row, kind, 14, truncate)["problem"] == ""
    found = example(row, kind, 13, truncate)
    assert (found["problem"], found["full_length"]) == (cause, 14)
    assert found["detail"] == "14 tokens, and max_length is 13"


# ---- pairs


# case: data-06
def test_a_long_prompt_loses_its_first_tokens(example: Encode, words: Words, tiny_tokenizer: Any) -> None:
    """Prompt 10, response 3, max 8: the prompt's last 5 and the response's 3; the shorter response keeps its 2."""
    prompt = words(5) + words(5, " and")
    row = {"prompt": prompt, "chosen": words(3), "rejected": words(2)}
    found = example(row, "preference", 8, "left-turns")
    assert found["prompt_ids"] == tiny_tokenizer.encode(prompt, add_special_tokens=False)[-5:]
    assert [len(found[name]) for name in ("prompt_ids", "chosen_ids", "rejected_ids")] == [5, 3, 2]
    assert (found["truncated"], found["full_length"], found["length"]) == (True, 13, 10)
    assert example(row, "preference", 8, "right")["problem"] == "prompt too long"


@pytest.mark.parametrize(
    ("answer", "prompt", "kept"),
    [
        (20, 10, (4, 12)),  # a quarter of 16 stays of the prompt, and 12 of the response
        (20, 3, (3, 13)),  # all of a shorter prompt
        (10, 10, (6, 10)),
        (4, 10, (10, 4)),
    ],
)
def test_a_quarter_is_kept_for_the_prompt(
    example: Encode, words: Words, answer: int, prompt: int, kept: tuple[int, int]
) -> None:
    row = {"prompt": words(prompt), "chosen": words(answer), "rejected": words(answer - 1, " and") + words(1)}
    found = example(row, "preference", 16, "left-turns")
    assert (len(found["prompt_ids"]), len(found["chosen_ids"]), len(found["rejected_ids"])) == (*kept, kept[1])


@pytest.mark.parametrize(("max_length", "kept"), [(14, 11), (13, 8), (11, 8), (10, 6), (9, 6), (8, 5), (5, 2)])
def test_prompts_lose_whole_turns_first_then_the_system_text_then_tokens(
    example: Encode, words: Words, max_length: int, kept: int
) -> None:
    """System 2, turns 1 + 2, 6; response 3: 11, without the first turns 8, without system 6, then single tokens."""
    prompt = [turn("system", words(2)), turn("user", words(1)), turn("assistant", words(2)), turn("user", words(6))]
    row = {"prompt": prompt, "chosen": words(3), "rejected": words(3, " and")}
    assert len(example(row, "preference", max_length, "left-turns")["prompt_ids"]) == kept


@pytest.mark.parametrize("truncate", ["right", "left-turns"])
def test_pairs_that_become_equal_are_dropped(example: Encode, words: Words, truncate: str) -> None:
    row = {"prompt": words(2), "chosen": words(9), "rejected": words(8) + words(1, " and")}
    found = example(row, "preference", 9, truncate)
    assert found["problem"] == "identical responses after truncation"
    assert found["detail"] == "the responses are identical in the first 7 tokens"
    assert example(row, "preference", 11, truncate)["problem"] == ""
    assert example(row, "preference", 1, truncate)["problem"] == "prompt too long"


# ---- what may be truncated


def test_a_tools_turn_never_comes_first(example: Encode, words: Words) -> None:
    """User 3, assistant 3, tool 2, assistant 3, user 2, assistant 2: 15. Room for 12 would hold tool and all after it,
    9, but there the question would be missing: only user 2 and assistant 2 are left."""
    sizes = [("user", 3), ("assistant", 3), ("tool", 2), ("assistant", 3), ("user", 2), ("assistant", 2)]
    chat = {"messages": [turn(role, words(size)) for role, size in sizes]}
    assert example(chat, "chat", 12, "left-turns")["spans"] == [2, 4]


@pytest.mark.slow
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=6), room=st.integers(2, 40))
def test_as_few_turns_as_possible_are_cut(
    example: Encode, words: Words, sizes: list[tuple[int, int]], room: int
) -> None:
    """Tried one after the other: the longest tail of exchanges that fits, else the last one, truncated. Where its
    question fills the room, the same of the chats that end earlier; of these the one with the most exchanges."""
    chat = [t for asked, said in sizes for t in (turn("user", words(asked)), turn("assistant", words(said)))]

    def window(end: int) -> tuple[int, int]:
        """Number of exchanges and of tokens of the window that ends there; 0 tokens where no response is left."""
        totals = [sum(map(sum, sizes[first:end])) for first in range(end)]
        first = next((first for first, total in enumerate(totals) if total <= room), end - 1)
        is_left = first < end - 1 or sizes[end - 1][0] < room
        return end - first, min(totals[first], room) if is_left else 0

    windows = [window(end) for end in range(len(sizes), 0, -1)]
    others = max((found for found in windows if found[1]), key=lambda found: found[0], default=(0, 0))
    found = example({"messages": chat}, "chat", room, "left-turns")
    assert found["length"] == (windows[0] if windows[0][1] else others)[1]
