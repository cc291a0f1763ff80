"""`inspect`: rows as training uses them, in colour or in brackets, and what is said about a split."""

import importlib.util
import re
import sys
from collections.abc import Callable
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from smollit.commands.inspect.advice import count_ends, find_all, repeats_prompt
from smollit.commands.inspect.histogram import draw, draw_lengths
from smollit.commands.inspect.inspect import inspect
from smollit.commands.inspect.rows import show_row, special_places, trained_spans, turns, visible
from smollit.commands.inspect.shown import Piece, Shown, show
from smollit.commands.inspect.view import SplitView
from smollit.data.encoding.counts import count_examples
from smollit.data.encoding.encoder import EncodeOptions, Encoder
from smollit.data.formats.detect import recognise
from smollit.data.formats.types import Conversation, Preference
from smollit.data.template.template import load_template

ROOT = Path(__file__).parent.parent.parent
QUESTION, ANSWER = "How many legs has a spider, and how many has a bee?", "A spider has eight and a bee has six."
Row = dict[str, Any]


def chat(*contents: str) -> Row:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[turn % 2], "content": text} for turn, text in enumerate(contents)]}


def pair(prompt: str, chosen: str, rejected: str, **scores: float) -> Row:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **scores}


@pytest.fixture(scope="module")
def make(tiny_tokenizer: PreTrainedTokenizerBase) -> Callable[..., SplitView]:
    """Makes a view of rows, encoded as training encodes them."""

    def make_view(
        rows: list[Row],
        max_length: int = 256,
        template: str = "chatml",
        tokenizer: PreTrainedTokenizerBase = tiny_tokenizer,
        name: str = "train",
        **more: Any,
    ) -> SplitView:
        kind = "chat" if "messages" in rows[0] else "preference"
        format = recognise(list(rows[0]), rows, kind=kind)  # type: ignore[arg-type]
        encoder = Encoder(load_template(tokenizer, template), EncodeOptions(kind, max_length), format)
        columns = {column: [row[column] for row in rows] for column in rows[0]}
        examples = Dataset.from_dict(encoder(columns, list(range(len(rows)))))
        good = examples.filter(lambda problem: problem == "", input_columns="problem")
        return SplitView(name, len(rows), rows.__getitem__, encoder, good, count_examples(examples), **more)

    return make_view


def look(view: SplitView, colour: bool = False, **options: Any) -> str:
    """What `inspect` prints: in a pipe, or in a terminal of 100 columns."""
    console = Console(file=StringIO(), width=100, force_terminal=colour, color_system="standard", no_color=False)
    inspect(view, console=console, **options)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def code(view: SplitView) -> int:
    """The exit code under --strict."""
    return inspect(view, strict=True, console=Console(file=StringIO()))


def wrong(view: SplitView) -> list[str]:
    return [finding.text for finding in find_all(view) if finding.severity == "wrong"]


# ---- a row


def shown_row(tokenizer: PreTrainedTokenizerBase, *parts: tuple[str, str, str, str]) -> Shown:
    """A row of (text, role, state, branch), tokenised piece by piece."""
    pieces = [
        Piece(text, tokenizer.encode(text, add_special_tokens=False), role, state, branch)  # type: ignore[arg-type]
        for text, role, state, branch in parts
    ]
    return Shown(7, pieces, "", "", [])


def print_row(shown: Shown, tokenizer: PreTrainedTokenizerBase, **options: Any) -> str:
    console = Console(file=StringIO(), width=100, **options)
    show_row(console, "train", shown, tokenizer, whole=False, ids=True)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_brackets_say_what_colours_would(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    """In a pipe: trained text in ⟦⟧, cut text in {- -}, the rest bare; template line breaks at the ends as a sign."""
    shown = shown_row(
        tiny_tokenizer,
        ("<|im_start|>user\nHi<|im_end|>\n", "user", "context", "shared"),
        ("<|im_start|>assistant\n", "assistant", "context", "shared"),
        ("Yes", "assistant", "trained", "shared"),
        (" indeed", "assistant", "cut", "shared"),
    )
    lines = print_row(shown, tiny_tokenizer).splitlines()
    assert lines[2:4] == ["    <|im_start|>user", "    Hi<|im_end|>⏎"]
    assert lines[6:8] == ["    <|im_start|>assistant", "    ⟦Yes⟧{- indeed-}"]


def test_colours_need_no_brackets(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    """Bold green is \\e[1;32m, struck-out red \\e[9;31m."""
    shown = shown_row(tiny_tokenizer, ("Yes", "assistant", "trained", "shared"), ("no", "assistant", "cut", "shared"))
    said = print_row(shown, tiny_tokenizer, force_terminal=True, color_system="standard", no_color=False)
    assert "\x1b[1;32mYes\x1b[0m" in said and "\x1b[9;31mno\x1b[0m" in said
    assert "⟦" not in said


def test_no_color_is_honoured(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    """rich reads NO_COLOR, and says so in `no_color`: then brackets stand in for colours, also in a terminal."""
    shown = shown_row(tiny_tokenizer, ("Yes", "assistant", "trained", "shared"))
    said = print_row(shown, tiny_tokenizer, force_terminal=True, color_system="standard", no_color=True)
    assert "⟦Yes⟧" in said and "\x1b" not in said


def test_tokens_are_counted_per_turn(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    """Special tokens are one token each: 2 + 3 kept + 1 cut, then 1 more turn. Trained are places 3 and 4."""
    start, end = "<|im_start|>", "<|im_end|>"
    shown = shown_row(
        tiny_tokenizer,
        (start + end, "user", "context", "shared"),
        (start, "assistant", "context", "shared"),
        (start + end, "assistant", "trained", "shared"),
        (end, "assistant", "cut", "shared"),
        (start, "user", "context", "shared"),
    )
    first, second, third = turns(shown.pieces)
    assert (first.start, first.size(), second.start, second.size(), third.start) == (0, 2, 2, 3, 5)
    assert trained_spans(second) == [(3, 5)]
    said = print_row(shown, tiny_tokenizer)
    assert "train row 7: 6 tokens, 2 trained (33%)" in said
    assert "assistant 3 tokens [2, 5), trained [3, 5), 1 token cut" in said


def test_both_answers_start_where_the_prompt_ends(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    shown = shown_row(
        tiny_tokenizer,
        ("<|im_start|><|im_end|>", "user", "context", "shared"),
        ("<|im_end|>", "assistant", "trained", "chosen"),
        ("<|im_start|><|im_start|>", "assistant", "trained", "rejected"),
    )
    assert [(turn.branch, turn.start) for turn in turns(shown.pieces)] == [
        ("shared", 0), ("chosen", 2), ("rejected", 2)
    ]  # fmt: skip


def test_a_terminal_obeys_nothing_in_the_data(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    """Escape sequences, carriage returns, direction marks and markup of `rich` are shown as what they are."""
    evil = "\x1b[2J\x1b]0;title\x07[bold]x[/bold]\r\u202edlrow\x9b1m :smile:"
    shown = shown_row(tiny_tokenizer, (evil + "<|im_end|>", "user\x1b[31m", "context", "shared"))
    shown = Shown(7, shown.pieces, "bad\x1b[31m", "why\x1b[31m", ["note\x1b[31m"])
    said = print_row(shown, tiny_tokenizer)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", said)
    assert "␛[2J␛]0;title␇[bold]x[/bold]␍\\u{202e}dlrow\\u{9b}1m :smile:" in said
    assert all(f"{word}␛[31m" in said for word in ("bad", "why", "note", "user"))


def test_visible_leaves_ordinary_text_alone() -> None:
    """Tabs and line breaks, emoji joined by U+200D, and scripts written from right to left."""
    for text in ("a\tb\nc", "👩‍🚀", "שלום", "العربية", "日本語", "␛"):
        assert visible(text) == text


def test_a_console_without_our_signs(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    """An encoding without the brackets, and text that no encoding has: written as escapes, no crash."""
    shown = shown_row(tiny_tokenizer, ("é", "assistant", "trained", "shared"))
    for encoding in ("ascii", "utf-8"):
        file = TextIOWrapper(BytesIO(), encoding=encoding)
        show_row(Console(file=file), "train\ud800", shown, tiny_tokenizer, whole=True, ids=False)
        file.flush()
        assert b"row 7" in file.buffer.getvalue()  # type: ignore[attr-defined]


def test_long_texts_lose_their_middle(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    """A cut turn shows about 180 characters of 1,200, from blank to blank; `whole` shows all."""
    text = "word " * 240
    shown = shown_row(tiny_tokenizer, (text, "user", "cut", "shared"))
    said = print_row(shown, tiny_tokenizer)
    assert re.search(r"\{-(word ?)+ … [\d,]+ characters not shown …( word)+ -\}", said)
    console = Console(file=StringIO())
    show_row(console, "train", shown, tiny_tokenizer, whole=True, ids=False)
    assert text in console.file.getvalue()  # type: ignore[attr-defined]


def test_special_tokens_are_told_by_their_ids(make: Callable[..., SplitView]) -> None:
    """A message that spells the end marker: the spelt one is text, the template's own is special."""
    view = make([chat("What does <|im_end|> mean?", "It ends a turn.")])
    shown = show(view.encoder, view.row(0), 0)
    for piece in shown.pieces:
        spelt = [piece.text[start:end] for start, end in special_places(piece, view.encoder.template.tokenizer)]
        ids = [token for token in piece.ids if token in (0, 1, 2)]
        assert spelt == view.encoder.template.tokenizer.convert_ids_to_tokens(ids)
    text = "".join(piece.text for piece in shown.pieces)
    assert text.count("<|im_end|>") == 3


def test_a_spelt_token_before_a_special_one(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    """Of `<|im_end|> is <|im_end|>` only the second is id 2: characters 14 to 24."""
    ids = [token for part in ("<|im", "_end|>", " is ") for token in tiny_tokenizer.encode(part)]
    piece = Piece("<|im_end|> is <|im_end|>", [*ids, 2], "user", "context", "shared")
    assert 2 not in ids and special_places(piece, tiny_tokenizer) == [(14, 24)]


# ---- what is shown is what is trained


def ids_shown(text: str) -> list[int]:
    """Numbers behind `ids`, without those in {- -}."""
    lines = [line.split("ids ", 1)[1] for line in text.splitlines() if line.startswith("    ids ")]
    return [int(number) for number in re.findall(r"\d+", re.sub(r"\{-.*?-\}", "", " ".join(lines)))]


@pytest.mark.parametrize("max_length", [256, 30])
def test_shown_ids_are_those_of_the_example(make: Callable[..., SplitView], max_length: int) -> None:
    """Whole and cut: the ids in the output are the cached ones; only the tail behind the last answer is left out."""
    view = make([chat(QUESTION, ANSWER, "Thanks!", "You are welcome, ask me any time.")], max_length)
    shown, cached = ids_shown(look(view, row=0, ids=True)), view.examples[0]["input_ids"]
    assert shown[: len(cached)] == cached
    assert len(shown) - len(cached) <= 1 and view.examples[0]["truncated"] == (max_length == 30)
    trained = " ".join(re.findall(r"⟦([\d ]+)⟧", look(view, row=0, ids=True)))
    spans = view.examples[0]["spans"]
    expected = [cached[start:end] for start, end in zip(spans[::2], spans[1::2], strict=True)]
    assert [int(number) for number in trained.split()] == [token for span in expected for token in span]


def test_a_pair_shows_its_prompt_once(make: Callable[..., SplitView]) -> None:
    view = make([pair(QUESTION, ANSWER, "Ask somebody else.")])
    said, example = look(view, row=0, ids=True), view.examples[0]
    assert ids_shown(said) == example["prompt_ids"] + example["chosen_ids"] + example["rejected_ids"]
    assert said.count(QUESTION) == 1
    order = [said.index(part) for part in ("prompt, shared", QUESTION, "chosen", ANSWER, "rejected", "Ask somebody")]
    assert order == sorted(order)


# ---- which rows


def rows_of(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"train row (\d+):", text)]


@pytest.fixture(scope="module")
def mixed(make: Callable[..., SplitView]) -> SplitView:
    """Rows 0 and 4 are good, 1 has no content, 2 is too long, 3 spells a control token."""
    rows = [chat("Hi", "Hello"), chat("Hi", ""), chat("Why?", "so " * 90), chat("<|im_end|>", "Yes"), chat("A", "B")]
    return make(rows, 60)


def test_good_rows_by_default(mixed: SplitView) -> None:
    assert rows_of(look(mixed)) == [0, 2, 3]
    assert rows_of(look(mixed, num_rows=1)) == [0]


def test_one_row_by_its_number(mixed: SplitView) -> None:
    """A dropped one too, with the reason."""
    assert rows_of(look(mixed, row=4)) == [4]
    assert "dropped, empty response: " in look(mixed, row=1)
    for number in (5, -1):
        with pytest.raises(ValueError, match=f"split train has rows 0 to 4, and no row {number}"):
            look(mixed, row=number)


def test_problems_are_the_rows_that_were_changed_or_dropped(mixed: SplitView) -> None:
    said = look(mixed, problems=True, num_rows=10)
    assert rows_of(said) == [1, 2, 3] and "3 of 5 were dropped, cut or escaped" in said
    assert "dropped, empty response" in said and "{-" in said
    report = mixed.report
    assert len(mixed.problems()) == report.rows - report.kept + report.truncated + report.control


def test_find_looks_at_rendered_text(mixed: SplitView) -> None:
    """Of contents, and across the template's own text; with --problems only among those."""
    assert rows_of(look(mixed, find="Hello<|im_end|>")) == [0]
    assert rows_of(look(mixed, find="Yes", problems=True)) == [3]
    assert rows_of(look(mixed, find="Hello<|im_end|>", problems=True)) == []
    assert rows_of(look(mixed, find="nobody says this")) == []


def test_a_split_without_a_good_row_shows_the_bad_ones(make: Callable[..., SplitView]) -> None:
    view = make([pair("q", "a", "a"), pair("r", "b", "b")])
    said = look(view)
    assert rows_of(said) == [0, 1] and "dropped, identical responses" in said


# ---- what is said about a split


def test_nothing_is_wrong_with_good_rows(make: Callable[..., SplitView]) -> None:
    view = make([chat("Hi", "Hello"), chat("Bye", "See you")])
    assert find_all(view) == [] and code(view) == 0
    assert look(view).endswith("nothing looks wrong\n")


def test_strict_fails_for_what_is_wrong_and_not_for_a_note(make: Callable[..., SplitView]) -> None:
    """One of twenty rows is dropped: less than `max_dropped_share`, so a note. With less allowed it is refused."""
    rows = [chat(f"Say {number}", f"It is {number}") for number in range(19)] + [chat("Hi", "")]
    view = make(rows)
    assert [finding.severity for finding in find_all(view)] == ["note"] and code(view) == 0
    refused = make(rows, max_dropped_share=0.01)
    assert code(refused) == 1 and inspect(refused, console=Console(file=StringIO())) == 0
    assert "training refuses this split: 1 of 20 rows" in wrong(refused)[0]


def test_the_step_that_writes_one_answer_into_both_columns(make: Callable[..., SplitView]) -> None:
    view = make([pair(f"question {number}", "yes", "yes") for number in range(3)])
    said = look(view)
    assert "✗ training refuses this split: in all 3 pairs" in said and "ln 2 = 0.6931" in said
    assert code(view) == 1


# case: template-08
def test_a_template_whose_markers_split(make: Callable[..., SplitView]) -> None:
    """The article's markers are text to this tokenizer: learnt badly, and its </s> stops no generation."""
    found = wrong(make([chat("Hi", "Hello"), chat("Bye", "See you")], template="article"))
    assert "the chat template's markers" in found[0] and "</s>" in found[0]
    assert found[1].startswith("no trained answer, of 2, ends with a token that stops generation")


def test_ends_are_counted_as_a_loop_counts_them(make: Callable[..., SplitView]) -> None:
    """Of chats, span by span; of pairs, the chosen answers. Some answers are cut, so not all end."""
    chats = make([chat("a", "b " * size, "c", "d " * size) for size in (1, 5, 9, 12)], 40)
    last = [example["input_ids"][end - 1] for example in chats.examples for end in example["spans"][1::2]]
    assert count_ends(chats) == (last.count(2), len(last)) and 0 < last.count(2) < len(last)
    pairs = make([pair("a", "b " * size, "c") for size in (1, 5, 40)], 30)
    ends = [example["chosen_ids"][-1] for example in pairs.examples]
    assert count_ends(pairs) == (ends.count(2), 3) and 0 < ends.count(2) < 3


def test_rows_that_two_splits_share(make: Callable[..., SplitView]) -> None:
    """One of the two test chats stands in train. Other answers to the same question are another chat."""
    test = make([chat("Hi", "Hello"), chat("Bye", "Never")], name="test")
    train = make([chat("Hi", "Hello"), chat("Bye", "See you"), chat("A", "B")], others=[test])
    (found,) = wrong(train)
    assert found.startswith("1 of 2 chats (50.0%) of the smaller split stand in both train and test")
    assert code(train) == 1


def test_pairs_share_prompts(make: Callable[..., SplitView]) -> None:
    test = make([pair("Hi", "Hello", "Go away")], name="test")
    train = make([pair("Hi", "Good day", "No"), pair("Bye", "See you", "Finally")], others=[test])
    assert any(line.startswith("1 of 1 prompts (100.0%) of the smaller split") for line in wrong(train))


def test_answers_that_repeat_the_question(make: Callable[..., SplitView]) -> None:
    """Of 20 chats one is a twentieth and still silent, two are not."""
    good = [chat(f"{QUESTION} ({number})", f"{ANSWER} ({number})") for number in range(20)]
    echo = [chat(f"{QUESTION} ({number})", f"{QUESTION} ({number}) {ANSWER}") for number in range(20)]
    assert wrong(make(echo[:1] + good[1:])) == []
    (found,) = wrong(make(echo[:2] + good[2:]))
    assert "in 2 of 20 rows that were looked at (10.0%) an answer" in found


def test_what_counts_as_a_repeat() -> None:
    """The question at the start of an answer; not a short one, not one that is quoted later, not in the rejected."""
    asked = {"role": "user", "content": QUESTION}
    assert repeats_prompt(Conversation([asked, {"role": "assistant", "content": f" {QUESTION} Six."}]))
    assert not repeats_prompt(Conversation([asked, {"role": "assistant", "content": f"You ask: {QUESTION}"}]))
    short = [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Hello! How are you?"}]
    assert not repeats_prompt(Conversation(short))
    echo, answer = {"role": "assistant", "content": QUESTION}, {"role": "assistant", "content": ANSWER}
    assert repeats_prompt(Preference([asked], echo, answer))
    assert not repeats_prompt(Preference([asked], answer, echo))


# ---- pictures


def test_the_histogram_holds_every_row(make: Callable[..., SplitView]) -> None:
    """Heights of the bars add up to the rows; those beyond the line are the cut ones."""
    view = make([chat("a", "b " * size) for size in range(1, 41)], 40)
    figure = Figure()
    axes = figure.subplots()
    draw_lengths(axes, view)
    bars = [(patch.get_x(), patch.get_height()) for patch in axes.patches]  # type: ignore[attr-defined]
    assert sum(height for _, height in bars) == 40
    labels = [text.get_text() for text in axes.get_legend().get_texts()]  # type: ignore[union-attr]
    cut = view.report.truncated
    assert labels == [f"whole ({40 - cut} rows)", f"cut ({cut} rows)", "max_length 40"] and 0 < cut < 40


@pytest.mark.parametrize("rows", [[chat("a", "b"), chat("c", "d " * 30)], [pair("a", "b", "c " * 9)]])
def test_a_histogram_is_a_picture(make: Callable[..., SplitView], tmp_path: Path, rows: list[Row]) -> None:
    """Of a legible size, and not blank."""
    said = look(make(rows), histogram=tmp_path / "new" / "lengths.png")
    with Image.open(tmp_path / "new" / "lengths.png") as picture:
        assert picture.width >= 800 and len(np.unique(np.asarray(picture.convert("L")))) > 10
    assert "lengths drawn: " in said


def test_a_histogram_without_matplotlib_names_the_extra(
    make: Callable[..., SplitView], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`None` in sys.modules is Python's own mark of a module that can't be imported."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match=r"pip install 'smollit\[plots\]'"):
        look(make([chat("a", "b")]), histogram=tmp_path / "lengths.png")


def test_no_rows_no_histogram(make: Callable[..., SplitView], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="split train has no row that can be trained"):
        draw(make([pair("q", "a", "a")]), tmp_path / "lengths.png")


def load_script() -> ModuleType:
    """docs/make_inspect_pictures.py."""
    path = ROOT / "docs" / "make_inspect_pictures.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pictures_of_the_docs(tmp_path: Path) -> None:
    """All four, and each shows what it is for; nothing is loaded from elsewhere."""
    pictures = {path.stem: path.read_text(encoding="utf-8") for path in load_script().draw_all(tmp_path)}
    texts = {name: re.sub(r"<[^>]+>", "", svg).replace("&#160;", " ") for name, svg in pictures.items()}
    assert "loss tokens" in texts["inspect_chat"]
    assert "prompt, shared by both answers" in texts["inspect_pair"]
    assert "are several tokens each" in texts["inspect_article"]
    assert "training refuses this split: in all 200 pairs" in texts["inspect_broken"]
    assert not any("http" in re.sub(r'xmlns="[^"]+"|<!--.*?-->', "", svg) for svg in pictures.values())


@pytest.mark.shared
@pytest.mark.parametrize("folder", ["ultrachat_200k", "ultrafeedback_binarized"])
def test_real_rows_show_what_is_cached(shared: Path, folder: str) -> None:
    """Twenty real rows with SmolLM2's tokenizer: shown ids, without the cut ones, are the example's."""
    tokenizer = str(shared / "models" / "smollm2-tokenizer" / "instruct-135M")
    split, kind = ("train_sft", "chat") if folder == "ultrachat_200k" else ("train_prefs", "preference")
    view = load_script().make_view(str(shared / "data" / folder), split, kind, tokenizer, "auto")
    for example in view.examples.select(range(20)):
        shown = ids_shown(look(view, row=example["row"], ids=True))
        parts = ["input_ids"] if kind == "chat" else ["prompt_ids", "chosen_ids", "rejected_ids"]
        ids = [token for part in parts for token in example[part]]
        assert shown[: len(ids)] == ids


@pytest.mark.shared
def test_real_tokenizer_real_markers(shared: Path, make: Callable[..., SplitView]) -> None:
    """SmolLM2's own template is sound; the article's splits `<|user|>` with its tokenizer too."""
    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "smollm2-tokenizer" / "instruct-135M")
    rows = [chat("Hi", "Hello"), chat("Bye", "See you")]
    assert wrong(make(rows, template="auto", tokenizer=tokenizer)) == []
    assert "<|user|>" in wrong(make(rows, template="article", tokenizer=tokenizer))[0]
