"""How a row is printed: turns with their tokens, in colour or in brackets, and nothing that a terminal executes."""

import re
from collections.abc import Callable
from io import BytesIO, StringIO, TextIOWrapper
from typing import Any

import pytest
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from smollit.commands.console import visible
from smollit.commands.inspect.pieces import InspectedRow, Piece, inspect_row
from smollit.commands.inspect.print_row import print_row, special_spans
from smollit.commands.inspect.split_view import SplitView

START, END = "<|im_start|>", "<|im_end|>"  # one token each
Print = Callable[..., str]


@pytest.fixture
def printed(tiny_tokenizer: PreTrainedTokenizerBase) -> Print:
    """printed((text, role, state, branch), ...) is what a row of these pieces looks like, with its token ids."""

    def write(*parts: tuple[str, str, str, str], row: InspectedRow | None = None, **options: Any) -> str:
        pieces = [
            Piece(text, tiny_tokenizer.encode(text, add_special_tokens=False), role, state, branch)  # type: ignore[arg-type]
            for text, role, state, branch in parts
        ]
        console = Console(file=StringIO(), width=100, **options)
        print_row(console, "train", row or InspectedRow(7, pieces, "", "", []), tiny_tokenizer, ids=True)
        assert isinstance(console.file, StringIO)
        return console.file.getvalue()

    return write


def test_brackets_say_what_colours_would(printed: Print) -> None:
    """In a pipe: loss tokens in ⟦⟧, truncated text in {- -}, the rest bare; line breaks at the ends as a sign."""
    lines = printed(
        (f"{START}user\nHi{END}\n", "user", "context", "shared"),
        (f"{START}assistant\n", "assistant", "context", "shared"),
        ("Yes", "assistant", "loss", "shared"),
        (" indeed", "assistant", "truncated", "shared"),
    ).splitlines()
    assert lines[2:4] == [f"    {START}user", f"    Hi{END}⏎"]
    assert lines[6:8] == [f"    {START}assistant", "    ⟦Yes⟧{- indeed-}"]


def test_colours_need_no_brackets_and_no_color_is_honoured(printed: Print) -> None:
    """Bold green is \\e[1;32m, struck-out red \\e[9;31m. With NO_COLOR, which rich reads: brackets."""
    parts = ("Yes", "assistant", "loss", "shared"), ("no", "assistant", "truncated", "shared")
    said = printed(*parts, force_terminal=True, color_system="standard", no_color=False)
    assert "\x1b[1;32mYes\x1b[0m" in said and "\x1b[9;31mno\x1b[0m" in said and "⟦" not in said
    said = printed(*parts, force_terminal=True, color_system="standard", no_color=True)
    assert "⟦Yes⟧" in said and "\x1b" not in said


def test_tokens_are_counted_per_turn(printed: Print) -> None:
    """2 tokens; 3 kept and 1 truncated, of which indices 3 and 4 are in the loss; 1 token. 2 of 6 are 33 %."""
    said = printed(
        (START + END, "user", "context", "shared"),
        (START, "assistant", "context", "shared"),
        (START + END, "assistant", "loss", "shared"),
        (END, "assistant", "truncated", "shared"),
        (START, "user", "context", "shared"),
    )
    assert "train row 7: 6 tokens, 2 in the loss (33%)" in said
    assert "user 2 tokens [0, 2)" in " ".join(said.split())
    assert "assistant 3 tokens [2, 5), loss [3, 5), 1 token truncated" in said
    assert "user 1 token [5, 6)" in " ".join(said.split())


def test_both_responses_start_where_the_prompt_ends(printed: Print) -> None:
    """A prompt of 2 tokens; chosen is [2, 3), rejected [2, 4)."""
    said = printed(
        (START + END, "user", "context", "shared"),
        (END, "assistant", "loss", "chosen"),
        (START + START, "assistant", "loss", "rejected"),
    )
    assert "1 token [2, 3)" in said and "2 tokens [2, 4)" in said


def test_a_terminal_obeys_nothing_in_the_data(printed: Print) -> None:
    """Escape sequences, carriage returns, direction marks and markup of `rich` are shown as what they are."""
    evil = "\x1b[2J\x1b]0;title\x07[bold]x[/bold]\r\u202edlrow\x9b1m :smile:"
    piece = Piece(evil + END, [1], "user\x1b[31m", "context", "shared")
    said = printed(row=InspectedRow(7, [piece], "bad\x1b[31m", "why\x1b[31m", ["note\x1b[31m"]))
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", said)
    assert "␛[2J␛]0;title␇[bold]x[/bold]␍\\u{202e}dlrow\\u{9b}1m :smile:" in said
    assert all(f"{word}␛[31m" in said for word in ("bad", "why", "note", "user"))


def test_visible_leaves_ordinary_text_alone() -> None:
    """Tabs and line breaks, emoji joined by U+200D, and scripts written from right to left."""
    for text in ("a\tb\nc", "👩‍🚀", "שלום", "العربية", "日本語", "␛"):
        assert visible(text) == text


def test_a_console_without_our_signs(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    """An encoding without the brackets, and text that no encoding has: written as escapes, no crash."""
    row = InspectedRow(7, [Piece("é", [5], "assistant", "loss", "shared")], "", "", [])
    for encoding in ("ascii", "utf-8"):
        buffer = BytesIO()
        file = TextIOWrapper(buffer, encoding=encoding)
        print_row(Console(file=file), "train\ud800", row, tiny_tokenizer, in_full=True)
        file.flush()
        assert b"row 7" in buffer.getvalue()


def test_long_texts_lose_their_middle(printed: Print, make: Callable[..., SplitView], look: Callable[..., str]) -> None:
    """A truncated turn shows about 180 characters of 1,200, from space to space; --row N shows all of a text."""
    said = printed(("word " * 240, "user", "truncated", "shared"))
    assert re.search(r"\{-(word ?)+ … [\d,]+ characters not shown …( word)+ -\}", said)
    text = ("word " * 300).strip()
    assert text in look(make([[text, "Yes"]], 2000), row=0)


def test_special_tokens_are_known_by_their_ids(make: Callable[..., SplitView]) -> None:
    """A message that spells the end marker: the spelled one is text, the template's own is special."""
    view = make([["What does <|im_end|> mean?", "It ends a turn."]])
    tokenizer = view.encoder.template.tokenizer
    (shown,) = inspect_row(view.encoder, view.row(0), 0)
    for piece in shown.pieces:
        spelled = [piece.text[start:end] for start, end in special_spans(piece, tokenizer)]
        assert spelled == tokenizer.convert_ids_to_tokens([token for token in piece.ids if token in (0, 1, 2)])
    assert "".join(piece.text for piece in shown.pieces).count(END) == 3
    # Of `<|im_end|> is <|im_end|>` only the second is id 2: characters 14 to 24.
    ids = [token for part in ("<|im", "_end|>", " is ") for token in tokenizer.encode(part)]
    piece = Piece("<|im_end|> is <|im_end|>", [*ids, 2], "user", "context", "shared")
    assert 2 not in ids and special_spans(piece, tokenizer) == [(14, 24)]
