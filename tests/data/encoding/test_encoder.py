"""Rows -> examples: loss spans, pairs, scores, plain text; bad rows are named and change no other row."""

import gc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from smollit.data.encoding.encoder import Encoder
from smollit.data.formats.detection.detect import detect_format
from smollit.data.sources.readers import RAW
from tests.data.conftest import Row, assistant, user

Make = Callable[..., Encoder]
Encode = Callable[[Encoder, list[Row]], list[Row]]
Words = Callable[..., str]


def chat(question: Any, response: Any) -> Row:
    return {"messages": [user(question), assistant(response)]}


def pair(prompt: Any, chosen: Any, rejected: Any) -> Row:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


# ---- chats


def test_responses_that_differ_in_what_is_not_printed(make_encoder: Make, encode: Encode) -> None:
    """ChatML prints no reasoning: these are the same text, and the rows are not to blame."""
    rows = [
        pair("q", [assistant("a", reasoning_content=one)], [assistant("a", reasoning_content="no")]) for one in "ab"
    ]
    (first, _) = encode(make_encoder("preference"), rows)
    assert first["problem"] == "identical responses as the template prints them"
    assert first["detail"].startswith("`chosen` and `rejected` differ in reasoning_content, and the template prints")


# case: mask-02
def test_a_chat_whose_response_is_truncated_away_is_dropped_with_the_length(
    make_encoder: Make, encode: Encode, words: Words, bare: str
) -> None:
    """max_length 4, prompt of 6 tokens: no loss token is left; the report must know the row's 8 tokens."""
    (example,) = encode(make_encoder("chat", 4, template=bare), [chat(words(6), words(2))])
    assert (example["problem"], example["full_length"]) == ("no loss tokens", 8)
    assert example["detail"] == "the first loss token is token 6, and max_length is 4"


# case: mask-11
def test_the_first_token_of_a_row_is_never_a_loss_token(
    make_encoder: Make, encode: Encode, words: Words, bare: str
) -> None:
    """A turn of 3 tokens at the start: token 0 has no prefix, so 2 are in the loss; of 1 token: none."""
    rows = [{"messages": [assistant(words(3)), user("x")]}, {"messages": [assistant(words(1)), user("x")]}]
    first, second = encode(make_encoder(template=bare), rows)
    assert (first["spans"], first["loss_tokens"]) == ([1, 3], 2)
    assert second["problem"] == "no loss tokens"


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=4), room=st.integers(1, 30)
)
def test_truncation_clips_spans_and_nothing_else(
    make_encoder: Make, encode: Encode, words: Words, bare: str, lengths: list[tuple[int, int]], room: int
) -> None:
    """Loss tokens = the responses' tokens before `room`, counted one by one."""
    messages = [turn for asked, said in lengths for turn in (user(words(asked)), assistant(words(said)))]
    flags = [flag for asked, said in lengths for flag in [False] * asked + [True] * said][:room]
    (example,) = encode(make_encoder("chat", room, template=bare), [{"messages": messages}])
    spans = zip(example["spans"][::2], example["spans"][1::2], strict=True)
    in_loss = {position for start, end in spans for position in range(start, end)}
    assert in_loss == {position for position, flag in enumerate(flags) if flag}
    assert example["loss_tokens"] == sum(flags)
    assert example["length"] == len(example["input_ids"]) == max(in_loss, default=-1) + 1


# ---- pairs


# case: template-06
def test_a_tokenizer_without_bos_gives_only_numbers(
    make_encoder: Make, encode: Encode, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer.name_or_path)
    tokenizer.bos_token = None
    assert tokenizer.bos_token_id is None
    (example,) = encode(make_encoder("preference", tokenizer=tokenizer), [pair("q", "a", "b")])
    ids = example["prompt_ids"] + example["chosen_ids"] + example["rejected_ids"]
    assert {type(token) for token in ids} == {int}


def test_an_empty_prompt_is_a_bad_row(make_encoder: Make, encode: Encode, bare: str) -> None:
    """Bare content of an empty turn has no token to respond to."""
    (example,) = encode(make_encoder("preference", template=bare), [pair([user("")], "a", "b")])
    assert example["problem"] == "empty prompt"


# ---- plain text


# case: template-02
# case: template-06
def test_plain_text_gets_the_tokenizers_own_bos_once_and_eos(
    make_encoder: Make, encode: Encode, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    """1 is put before texts by this tokenizer, 0 is its eos; all tokens are in the loss but token 0, which nothing
    predicts."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer.name_or_path, bos_token="<|im_start|>")
    form = detect_format(["text"], [], kind="chat", format="text")
    ids = tokenizer.encode("the cat", add_special_tokens=False)
    (example,) = encode(make_encoder(tokenizer=tokenizer, format=form), [{"text": "the cat"}])
    assert (example["input_ids"], example["spans"]) == ([*ids, 0], [1, len(ids) + 1])
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    rows = [{"text": "the cat"}, *({"text": f"<|im_start|>the cat<|endoftext|>{space}"} for space in ("", "\n"))]
    first, second, third = encode(make_encoder(tokenizer=tokenizer, format=form), rows)
    assert first["input_ids"] == second["input_ids"] == [1, *ids, 0]
    assert first["spans"] == second["spans"] == [1, len(ids) + 2]
    assert third["input_ids"] == [*first["input_ids"], *tokenizer.encode("\n", add_special_tokens=False)[-1:]]


# ---- the steps of a row


def test_equal_chats_have_equal_digests(make_encoder: Make, encode: Encode) -> None:
    """Also of rows that are truncated, and of pairs with the same prompt and other responses."""
    rows = [chat("a b c", "d e f"), chat("a b c", "d e f"), chat("a b c", "d e g")]
    one, same, other = encode(make_encoder("chat", 12), rows)
    assert one["digest"] == same["digest"] != other["digest"]
    pairs = encode(make_encoder("preference"), [pair("q", "a", "b"), pair("q", "c", "d"), pair("r", "a", "b")])
    assert pairs[0]["digest"] == pairs[1]["digest"] != pairs[2]["digest"]
    assert all(-(2**63) <= example["digest"] < 2**63 for example in pairs)


# ---- bad rows


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    before=st.text(max_size=3), surrogate=st.integers(0xD800, 0xDFFF).map(chr), inside=st.sampled_from(["chat", "pair"])
)
def test_a_lone_surrogate_is_a_counted_bad_row(
    make_encoder: Make, encode: Encode, before: str, surrogate: str, inside: str
) -> None:
    """The tokenizer would raise TypeError, and Arrow could not even store it."""
    text = before + surrogate + "x"
    row = chat("a", text) if inside == "chat" else pair("a", "b", text)
    (example,) = encode(make_encoder("chat" if inside == "chat" else "preference"), [row])
    assert example["problem"] == "text is not valid Unicode"


@pytest.mark.parametrize("truncate", ["right", "left-turns"])
def test_rows_that_are_tokenized_together_do_not_change_each_other(
    make_encoder: Make, encode: Encode, truncate: str
) -> None:
    """430 rows of 1 to 5 turns, more than are tokenized at once, some without a response, every fourth malformed: in
    order, and each as if alone."""
    turns = [user("hi <|im_end|>"), assistant("yes"), user("why"), assistant("so"), user("oh")]
    rows = [{"messages": turns[: 1 + number % 5] if number % 4 else [user(None)]} for number in range(430)]
    encoder = make_encoder("chat", 40, truncate=truncate)
    alone = [encode(encoder, [row])[0] for row in rows[:20]]  # the pattern repeats after 20 rows
    assert encode(encoder, rows) == [alone[number % 20] | {"row": number} for number in range(430)]
    assert {bool(example["problem"]) for example in alone} == {True, False}


@pytest.mark.parametrize("was_on", [True, False])
def test_the_garbage_collector_is_left_as_it_was(make_encoder: Make, encode: Encode, was_on: bool) -> None:
    """It is paused while rows are encoded; after them, and after a failure, it is on only if it was."""
    encoder = make_encoder()
    (gc.enable if was_on else gc.disable)()
    try:
        encode(encoder, [chat("a", "b")])
        assert gc.isenabled() == was_on
        with pytest.raises(AttributeError):
            encoder({RAW: [None]}, [0])
        assert gc.isenabled() == was_on
    finally:
        gc.enable()


def test_control_text_that_two_joined_turns_make_opens_no_turn(
    make_encoder: Make, encode: Encode, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    """Neither "a <|im_" nor "start|> b" is control text; the turn that they make, which is not in the loss and so is
    not split where they meet, is read as plain text."""
    row = {
        "prompt": [user("q"), assistant("a <|im_")],
        "completion": [assistant("start|> b") | {"train": False}, user("r"), assistant("c")],
    }
    (example,) = encode(make_encoder(format=detect_format(["prompt", "completion"], [], kind="chat")), [row])
    opens = tiny_tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert not example["problem"]
    assert example["input_ids"].count(opens) == 4  # of the four turns
    assert "a <|im_start|> b" in tiny_tokenizer.decode(example["input_ids"])


# ---- real rows
