"""Rows -> examples: cut to length, bad rows counted by cause, nothing dropped in silence."""

import gc
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, load_dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from smollit.commands.inspect.pieces import inspect_row
from smollit.data.encoding.counts import count_examples
from smollit.data.encoding.encoder import EncodeOptions, Encoder
from smollit.data.encoding.report import Report, verify_report
from smollit.data.encoding.steps import TOKEN_COLUMNS as COLUMNS
from smollit.data.formats.detect import recognise
from smollit.data.formats.format import Format
from smollit.data.formats.types import Kind
from smollit.data.sources.mixture import FormatName
from smollit.data.sources.readers import RAW
from smollit.data.template.template import load_template

BARE = "{% for m in messages %}{{ m.content }}{% endfor %}"


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def chat(question: Any, answer: Any) -> dict[str, Any]:
    return {"messages": [user(question), assistant(answer)]}


def pair(prompt: Any, chosen: Any, rejected: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def usual_format(kind: Kind, name: FormatName = "auto") -> Format:
    columns = {"chat": ["messages"], "preference": ["prompt", "chosen", "rejected", "score_chosen", "score_rejected"]}
    return recognise(["text"] if name == "text" else columns[kind], [], kind=kind, format=name)


def encode(encoder: Encoder, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Examples of rows as JSON Lines gives them."""
    columns = encoder({RAW: [json.dumps(row) for row in rows]}, list(range(len(rows))))
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def report(encoder: Encoder, rows: list[dict[str, Any]]) -> Report:
    return count_examples(Dataset.from_list(encode(encoder, rows)))


@pytest.fixture
def make(tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Callable[..., Encoder]:
    """Encoder of a kind and length; `bare` renders contents alone."""

    def build(kind: Kind, max_length: int = 64, bare: bool = False, **options: Any) -> Encoder:
        (tmp_path / "bare.jinja").write_text(BARE)
        choice = str(tmp_path / "bare.jinja") if bare else "chatml"
        template = load_template(tiny_tokenizer, choice)
        return Encoder(template, EncodeOptions(kind, max_length, **options), usual_format(kind))

    return build


@pytest.fixture
def words(tiny_tokenizer: PreTrainedTokenizerBase) -> Callable[[int], str]:
    """A text of exactly n tokens."""

    def text(count: int) -> str:
        made = " the" * count
        assert len(tiny_tokenizer.encode(made, add_special_tokens=False)) == count
        return made

    return text


# ---- cutting chats


# case: mask-02
def test_a_chat_whose_answer_is_cut_away_is_dropped_and_counted(make: Any, words: Any) -> None:
    """max_length 4, prompt of 6 tokens, answer of 2: no target is left in 1 of 1 rows, and such a set is refused."""
    seen = report(make("chat", 4, bare=True), [chat(words(6), words(2))])
    assert (seen.kept, seen.dropped) == (0, {"no loss tokens": 1})
    assert seen.drops()[0].startswith("1 of 1 rows dropped, no loss tokens: row 0: ")
    with pytest.raises(ValueError, match=r"raise `data\.max_length`"):
        verify_report(seen, "train", 1.0)


# case: mask-06
def test_the_kept_part_of_a_cut_answer_stays_trained(make: Any, words: Any) -> None:
    """Prompt 6, answer 8, room for 4: exactly 4 trained tokens, and no end that was not there."""
    (example,) = encode(make("chat", 10, bare=True), [chat(words(6), words(8))])
    assert example["spans"] == [6, 10]
    assert (example["loss_tokens"], example["truncated"], len(example["input_ids"])) == (4, True, 10)


# case: mask-08
def test_the_share_of_trained_tokens_is_reported(make: Any, words: Any) -> None:
    """1 row of 10 prompt and 4 answer tokens: 4 / 14 = 28.6 %."""
    seen = report(make("chat", bare=True), [chat(words(10), words(4))])
    assert "loss tokens 4 / 14 (28.6%)" in seen.summary("train")


# case: data-09
def test_cut_rows_and_lengths_are_reported(make: Any, words: Any) -> None:
    """Lengths 3, 5, 50 with max 10 -> 1/3 truncated; the middle one is 5 long."""
    rows = [chat(words(1), words(count - 1)) for count in (3, 5, 50)]
    seen = report(make("chat", 10, bare=True), rows)
    assert seen.lengths["p50"] == 5
    assert "1/3 truncated" in seen.summary("train")


# case: mask-11
def test_the_first_token_of_a_row_is_never_trained(make: Any, words: Any) -> None:
    """An answer of 3 tokens at the start: token 0 has no prefix, so 2 are trained; of 1 token: nothing."""
    rows = [{"messages": [assistant(words(3)), user("x")]}, {"messages": [assistant(words(1)), user("x")]}]
    first, second = encode(make("chat", bare=True), rows)
    assert (first["spans"], first["loss_tokens"]) == ([1, 3], 2)
    assert second["problem"] == "no loss tokens"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=4), room=st.integers(1, 30)
)
def test_cutting_clips_spans_and_nothing_else(make: Any, words: Any, lengths: list[tuple[int, int]], room: int) -> None:
    """Trained = the answers' tokens that stand before `room`, counted one by one."""
    messages = [turn for asked, said in lengths for turn in (user(words(asked)), assistant(words(said)))]
    flags = [flag for asked, said in lengths for flag in [False] * asked + [True] * said][:room]
    (example,) = encode(make("chat", room, bare=True), [{"messages": messages}])
    spans = zip(example["spans"][::2], example["spans"][1::2], strict=True)
    trained = {place for start, end in spans for place in range(start, end)}
    assert trained == {place for place, flag in enumerate(flags) if flag}
    assert example["loss_tokens"] == sum(flags)
    assert example["length"] == len(example["input_ids"]) == max(trained, default=-1) + 1


# ---- pairs


# case: data-06
def test_a_prompt_over_the_limit_is_dropped_and_counted(make: Any, words: Any) -> None:
    """Prompt 10, answers 3 and 2, max 8: no room for any answer; the row beside it stays."""
    rows = [pair(words(10), words(3), words(2)), pair(words(2), words(3), words(2))]
    seen = report(make("preference", 8, bare=True), rows)
    assert (seen.kept, seen.dropped) == (1, {"prompt too long": 1})
    assert "row 0: the prompt has 10 tokens, and max_length is 8" in seen.drops()[0]


# case: dpo-loss-08
def test_both_answers_end_with_one_turn_end(make: Any, tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    """Two earlier turns in the prompt keep their ends; each answer is its ids + one <|im_end|> (2)."""
    prompt = [user("a"), assistant("b"), user("c"), assistant("d"), user("e")]
    (example,) = encode(make("preference", 200), [pair(prompt, "one", "two")])
    for name, text in (("chosen_ids", "one"), ("rejected_ids", "two")):
        assert example[name] == [*tiny_tokenizer.encode(text, add_special_tokens=False), 2]
    assert example["prompt_ids"].count(2) == 5


# case: template-06
def test_a_tokenizer_without_bos_gives_only_numbers(tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    tiny_tokenizer.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.bos_token = None
    assert tokenizer.bos_token_id is None
    options = EncodeOptions("preference", 64)
    encoder = Encoder(load_template(tokenizer, "chatml"), options, usual_format("preference"))
    (example,) = encode(encoder, [pair("q", "a", "b")])
    ids = example["prompt_ids"] + example["chosen_ids"] + example["rejected_ids"]
    assert {type(token) for token in ids} == {int}


def test_equal_answers_are_counted_also_after_the_cut(make: Any, words: Any) -> None:
    rows = [pair("q", "a", "a"), pair(words(2), words(9), words(8)), pair(words(2), words(1), words(2))]
    examples = encode(make("preference", 5, bare=True), rows)
    assert [example["problem"] for example in examples] == [
        "identical responses",
        "identical responses after truncation",
        "",
    ]


def test_an_empty_prompt_is_a_bad_row(make: Any) -> None:
    """Bare content of an empty turn has no token to put answers behind."""
    (example,) = encode(make("preference", bare=True), [pair([user("")], "a", "b")])
    assert example["problem"] == "empty prompt"


# ---- scores


def scored(chosen: float | None, rejected: float | None) -> dict[str, Any]:
    return {**pair("q", "a", "b"), "score_chosen": chosen, "score_rejected": rejected}


def test_score_gaps_are_kept_and_may_drop_pairs(make: Any) -> None:
    """Gaps 3, 0, -2 and none at all."""
    rows = [scored(8, 5), scored(4, 4), scored(1, 3), scored(None, None)]
    examples = encode(make("preference"), rows)
    assert [example["problem"] for example in examples] == [""] * 4
    assert [example["score_gap"] for example in examples[:3]] == [3, 0, -2]
    assert math.isnan(examples[3]["score_gap"])
    strict = encode(make("preference", min_score_gap=1.0, score_ties="drop"), rows)
    assert [example["problem"] for example in strict] == ["", "tied scores", "score gap too small", "no scores"]
    assert "is -2, and min_score_gap 1" in strict[2]["detail"]
    assert [example["score_gap"] for example in strict[:3]] == [3, 0, -2]


# ---- plain text


# case: template-02
# case: template-06
def test_plain_text_gets_the_tokenizers_own_bos_once_and_eos(
    tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """1 is put before texts by this tokenizer, 0 is its eos; all is trained but token 0, which nothing predicts."""
    tiny_tokenizer.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, bos_token="<|im_start|>")
    form, options = usual_format("chat", "text"), EncodeOptions("chat", 64)
    plain = Encoder(load_template(tokenizer, "chatml"), options, form)
    words = tokenizer.encode("the cat", add_special_tokens=False)
    (example,) = encode(plain, [{"text": "the cat"}])
    assert (example["input_ids"], example["spans"]) == ([*words, 0], [1, len(words) + 1])
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    adding = Encoder(load_template(tokenizer, "chatml"), options, form)
    first, second = encode(adding, [{"text": "the cat"}, {"text": "<|im_start|>the cat<|endoftext|>"}])
    assert first["input_ids"] == second["input_ids"] == [1, *words, 0]
    assert first["spans"] == second["spans"] == [1, len(words) + 2]


# ---- what a person sees


@pytest.mark.parametrize("truncate", ["right", "left-turns"])
@pytest.mark.parametrize("kind", ["chat", "preference"])
def test_shown_pieces_are_the_example(make: Any, kind: Kind, truncate: str) -> None:
    """Ids of the pieces that are not cut, joined, are the example's; those in state trained are its spans'."""
    messages = [turn for n in range(4) for turn in (user(f"question {n} <|im_end|>"), assistant(f"reply {n} is this"))]
    row = {"messages": messages} if kind == "chat" else pair(messages[:-1], "yes, of course", "no, of course")
    for max_length in (12, 30, 60, 90, 500):
        encoder = make(kind, max_length, truncate=truncate)
        (example,) = encode(encoder, [row])
        shown = inspect_row(encoder, {RAW: json.dumps(row)}, 0)
        assert shown.problem == example["problem"]
        if example["problem"]:
            continue
        kept = [token for piece in shown.pieces if piece.state != "truncated" for token in piece.ids]
        assert kept == [token for name in COLUMNS[kind] if name != "spans" for token in example[name]]
        assert example["loss_tokens"] == sum(len(piece.ids) for piece in shown.pieces if piece.state == "loss")
        assert any(piece.state == "truncated" for piece in shown.pieces) == example["truncated"] == (max_length < 200)


def test_shown_pieces_have_roles_and_notes(make: Any) -> None:
    row = {"messages": [{"role": "system", "content": "s"}, user("x<|im_end|>"), assistant("yo")]}
    shown = make("chat").show(row, 7)
    assert [(piece.role, piece.state, piece.text) for piece in shown.pieces] == [
        ("system", "context", "<|im_start|>system\ns<|im_end|>\n"),
        ("user", "context", "<|im_start|>user\nx"),
        ("user", "context", "<|im_end|>"),
        ("user", "context", "<|im_end|>\n"),
        ("assistant", "context", "<|im_start|>assistant\n"),
        ("assistant", "loss", "yo<|im_end|>"),
    ]
    assert (shown.index, shown.problem, shown.notes) == (7, "", ["1 control text escaped"])


def test_a_dropped_row_shows_what_could_be_rendered(make: Any) -> None:
    shown = make("preference").show(pair("q", "a", "a"), 0)
    assert shown.problem == "identical responses"
    assert [piece.text for piece in shown.pieces if piece.branch != "shared"] == ["a<|im_end|>"] * 2
    assert make("chat").show(chat("a", None), 0).pieces == []


def test_equal_chats_have_equal_digests(make: Any) -> None:
    """Also of rows that are cut, and of pairs with the same prompt and other answers."""
    one, same, other = encode(
        make("chat", 12), [chat("a b c", "d e f"), chat("a b c", "d e f"), chat("a b c", "d e g")]
    )
    assert one["digest"] == same["digest"] != other["digest"]
    pairs = encode(make("preference"), [pair("q", "a", "b"), pair("q", "c", "d"), pair("r", "a", "b")])
    assert pairs[0]["digest"] == pairs[1]["digest"] != pairs[2]["digest"]
    assert all(-(2**63) <= example["digest"] < 2**63 for example in pairs)


# ---- bad rows


def test_good_rows_keep_their_own_tokens_between_bad_ones(make: Any, tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    """Rows 0, 2, 4 are good: a bad row takes no tokens of its neighbours."""
    rows = [chat("a", "zero"), chat("b", None), chat("c", "two"), chat(5, "x"), chat("d", "four")]
    examples = encode(make("chat"), rows)
    answers = [tiny_tokenizer.decode(e["input_ids"][e["spans"][0] :]) for e in examples if not e["problem"]]
    assert answers == ["zero<|im_end|>", "two<|im_end|>", "four<|im_end|>"]
    assert [example["row"] for example in examples] == [0, 1, 2, 3, 4]


# case: template-03
def test_null_content_names_row_and_message(make: Any) -> None:
    """Row 2 of the file, message 1."""
    seen = report(make("chat"), [chat("a", "b"), chat("a", "b"), chat("a", None)])
    assert seen.examples["null content"] == ["row 2: messages[1].content is null or missing"]


# case: template-03
def test_keys_that_arrow_filled_with_null_change_nothing(make: Any) -> None:
    """One row has tool_calls; Arrow gives all messages of both rows that key, mostly null."""
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "add", "id": None}]}
    rows = [{"messages": [user("a"), call]}, chat("a", "b")]
    table = Dataset.from_list(rows)
    assert table[1]["messages"][0]["tool_calls"] is None
    encoder = make("chat")
    columns = encoder(table[:], [0, 1])
    assert columns["problem"] == ["", ""]
    assert columns["input_ids"][1] == encode(encoder, rows)[1]["input_ids"]
    assert "None" not in encoder.template.tokenizer.decode(columns["input_ids"][0])


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    before=st.text(max_size=3), surrogate=st.integers(0xD800, 0xDFFF).map(chr), inside=st.sampled_from(["chat", "pair"])
)
def test_a_lone_surrogate_is_a_counted_bad_row(make: Any, before: str, surrogate: str, inside: str) -> None:
    """The tokenizer would raise TypeError, and Arrow could not even store it."""
    text = before + surrogate + "x"
    row = chat("a", text) if inside == "chat" else pair("a", "b", text)
    (example,) = encode(make("chat" if inside == "chat" else "preference"), [row])
    assert example["problem"] == "text is not valid Unicode"


# ---- reports


def test_the_message_on_too_many_drops_says_what_to_do(make: Any, words: Any) -> None:
    """2 of 4 rows are dropped: share 0.5."""
    rows = [pair(words(20), "a", "b"), pair("q", "a", ""), pair("q", "a", "b"), pair("q", "c", "d")]
    seen = report(make("preference", 16), rows)
    verify_report(seen, "train", 0.5)
    with pytest.raises(ValueError, match="2 of 4 rows of split train can't be used") as caught:
        verify_report(seen, "train", 0.49)
    assert "What to do: raise `data.max_length`, or fix the rows, or raise `data.max_dropped_share` above 0.5" in str(
        caught.value
    )


def test_a_set_of_equal_pairs_is_refused_with_the_reason(make: Any) -> None:
    """Margin 0 for ever: the loss is -log(1/2) = ln 2."""
    seen = report(make("preference"), [pair("q", "a", "a"), pair("r", "b", "b")])
    with pytest.raises(ValueError, match=r"in all 2 pairs of split val, .* ln 2 = 0.6931"):
        verify_report(seen, "val", 1.0)


def test_equal_pairs_beside_a_few_bad_rows_are_refused_with_the_same_reason(make: Any) -> None:
    seen = report(make("preference"), [pair("q", "a", "a"), pair("r", "b", "b"), pair("q", "", "b")])
    with pytest.raises(ValueError, match=r"in 2 of 3 pairs of split val, .* ln 2 = 0.6931"):
        verify_report(seen, "val", 1.0)


def test_when_the_template_refuses_all_rows_it_is_named_as_the_reason(
    tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """The template knows no tool turns, and every row has one."""
    path = tmp_path / "mine.jinja"
    path.write_text(
        BARE + "{{ raise_exception('no tools') if messages[1:2] | selectattr('role', 'eq', 'tool') | list }}"
    )
    rows = [{"messages": [user("a"), {"role": "tool", "content": "x"}, assistant("b")]}] * 2
    encoder = Encoder(load_template(tiny_tokenizer, str(path)), EncodeOptions("chat", 64), usual_format("chat"))
    with pytest.raises(ValueError, match=r"mine\.jinja") as caught:
        verify_report(report(encoder, rows), "train", 1.0)
    assert "the chat template is the reason: set `data.chat_template`" in str(caught.value)


# ---- real rows


@pytest.mark.shared
@pytest.mark.parametrize(
    ("kind", "folder", "split"),
    [("chat", "ultrachat_200k", "test_sft"), ("preference", "ultrafeedback_binarized", "test_prefs")],
)
def test_real_rows_are_kept_but_for_named_causes(
    shared: Path, tmp_path: Path, kind: Kind, folder: str, split: str
) -> None:
    """All rows of the published columns parse; whatever is dropped is dropped for its length or for equal answers."""
    rows = load_dataset(str(shared / "data" / folder), split=split, cache_dir=str(tmp_path))
    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "smollm2-tokenizer" / "instruct-135M")
    form = recognise(rows.column_names, [rows[0]], kind=kind)
    encoder = Encoder(load_template(tokenizer, "auto"), EncodeOptions(kind, 2048), form)
    columns = encoder(rows[:], list(range(len(rows))))
    problems = [problem for problem in columns["problem"] if problem]
    assert set(problems) <= {
        "prompt too long",
        "identical responses",
        "identical responses after truncation",
        "empty response",
    }
    assert len(problems) < 0.05 * len(rows)


@pytest.mark.parametrize("truncate", ["right", "left-turns"])
@pytest.mark.parametrize("at_once", [1, 2, 7])
def test_rows_that_are_tokenised_together_do_not_change_each_other(
    make: Callable[..., Encoder], monkeypatch: pytest.MonkeyPatch, at_once: int, truncate: str
) -> None:
    """23 rows of 1 to 5 turns, some without an answer, every fourth malformed, 1, 2 or 7 at once: in order, and each as
    it is by itself."""
    turns = [user("hi <|im_end|>"), assistant("yes"), user("why"), assistant("so"), user("oh")]
    rows = [{"messages": turns[: 1 + number % 5] if number % 4 else [user(None)]} for number in range(23)]
    encoder = make("chat", max_length=40, truncate=truncate)
    alone = [encode(encoder, [row])[0] | {"row": number} for number, row in enumerate(rows)]
    monkeypatch.setattr("smollit.data.encoding.encoder.AT_ONCE", at_once)
    assert encode(encoder, rows) == alone
    assert {bool(example["problem"]) for example in alone} == {True, False}


def test_control_text_that_two_joined_turns_make_opens_no_turn(
    tiny_tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Neither "a <|im_" nor "start|> b" is control text; the turn that they make, which is not trained and so is
    not cut where they meet, is read as plain text."""
    form = recognise(["prompt", "completion"], [], kind="chat")
    encoder = Encoder(load_template(tiny_tokenizer, "chatml"), EncodeOptions("chat", 64), form)
    row = {
        "prompt": [user("q"), assistant("a <|im_")],
        "completion": [assistant("start|> b") | {"train": False}, user("r"), assistant("c")],
    }
    (example,) = encode(encoder, [row])
    opens = tiny_tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert not example["problem"]
    assert example["input_ids"].count(opens) == 4  # of the four turns
    assert "a <|im_start|> b" in tiny_tokenizer.decode(example["input_ids"])


@pytest.mark.parametrize("was_on", [True, False])
def test_the_garbage_collector_is_left_as_it_was(make: Callable[..., Encoder], was_on: bool) -> None:
    """It waits while rows are encoded; after them, and after a failure, it is on only if it was."""
    encoder = make("chat")
    (gc.enable if was_on else gc.disable)()
    try:
        encode(encoder, [chat("a", "b")])
        assert gc.isenabled() == was_on
        with pytest.raises(AttributeError):
            encoder({RAW: [None]}, [0])
        assert gc.isenabled() == was_on
    finally:
        gc.enable()
