"""A row as a person reads it: turns with their tokens, what is trained, what was cut; in colour, or in brackets."""

import re
import textwrap
from dataclasses import replace
from itertools import groupby
from typing import NamedTuple

from rich.console import Console
from rich.padding import Padding
from rich.rule import Rule
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from smollit.commands.inspect.shown import Piece, Shown, State

STYLES = {"trained": "bold green", "context": "default", "cut": "red strike"}
DROPPED: dict[State, State] = {"trained": "context", "context": "context", "cut": "cut"}
BRACKETS = {"trained": ("⟦", "⟧"), "context": ("", ""), "cut": ("{-", "-}")}
SPECIAL = "cyan"
NEWLINE = "⏎"  # stands for a line break at either end of a turn, where it would be an empty line
# Characters at the head and tail of a stretch of text that are shown, unless all are wanted.
SHOWN = {"trained": (500, 250), "context": (500, 250), "cut": (120, 60)}
# What a terminal obeys or hides instead of showing it: control and direction characters, tags, surrogates.
UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff\U000e0000-\U000e007f]"
)
TITLES = {"shared": "prompt, shared by both answers", "chosen": "chosen", "rejected": "rejected"}


class Turn(NamedTuple):
    """Pieces of one role and branch, and the place of the first token in its sequence."""

    role: str
    branch: str
    start: int
    pieces: list[Piece]

    def size(self) -> int:
        """Number of tokens that are kept."""
        return sum(len(piece.ids) for piece in self.pieces if piece.state != "cut")


def show_row(
    console: Console, split: str, shown: Shown, tokenizer: PreTrainedTokenizerBase, whole: bool, ids: bool
) -> None:
    """Print a row.

    Args:
        console: Where to.
        split: Name of the row's split.
        shown: The row.
        tokenizer: Says which tokens are special.
        whole: Show long texts from end to end.
        ids: Show token ids too.
    """
    if shown.problem:  # whatever was to be trained of it is not
        shown = replace(shown, pieces=[piece._replace(state=DROPPED[piece.state]) for piece in shown.pieces])
    _head(console, split, shown)
    found = turns(shown.pieces)
    is_pair = any(turn.branch != "shared" for turn in found)
    for branch, group in groupby(found, key=lambda turn: turn.branch):
        if is_pair:
            say(console, Text(TITLES[branch], style="bold"), indent=1)
        for turn in group:
            say(console, Text.assemble((f"{visible(turn.role):<10}", "bold"), (describe(turn), "dim")), indent=2)
            say(console, turn_text(turn, tokenizer, is_plain(console), whole), indent=4)
            if ids:
                say(console, ids_text(turn, is_plain(console)), indent=4)
    say(console, "")


def turns(pieces: list[Piece]) -> list[Turn]:
    """Pieces by role and branch; both answers of a pair start where the prompt ends."""
    places = {"shared": 0}
    found = []
    for (role, branch), group in groupby(pieces, key=lambda piece: (piece.role, piece.branch)):
        start = places.setdefault(branch, places["shared"])
        found.append(Turn(role, branch, start, list(group)))
        places[branch] += found[-1].size()
    return found


def describe(turn: Turn) -> str:
    """Tokens [start, end), and which of them are trained or cut."""
    cut = sum(len(piece.ids) for piece in turn.pieces if piece.state == "cut")
    parts = [f"{tokens(turn.size())} [{turn.start}, {turn.start + turn.size()})"] if turn.size() else []
    spans = trained_spans(turn)
    if spans:
        parts.append("trained " + " ".join(f"[{start}, {end})" for start, end in spans))
    if cut:
        parts.append(f"{tokens(cut)} cut")
    return ", ".join(parts)


def tokens(count: int) -> str:
    """For example `1 token`, `1,024 tokens`."""
    return f"{count:,} {'token' if count == 1 else 'tokens'}"


def trained_spans(turn: Turn) -> list[tuple[int, int]]:
    """Trained tokens as [start, end), places in the sequence; neighbours are one span."""
    spans: list[tuple[int, int]] = []
    place = turn.start
    for piece in turn.pieces:
        end = place + (len(piece.ids) if piece.state != "cut" else 0)
        if piece.state == "trained" and end > place:
            joined = bool(spans) and spans[-1][1] == place
            spans = [*spans[:-1], (spans[-1][0], end)] if joined else [*spans, (place, end)]
        place = end
    return spans


def turn_text(turn: Turn, tokenizer: PreTrainedTokenizerBase, plain: bool, whole: bool) -> Text:
    """The turn's text, each stretch in the style or brackets of its state, special tokens in a colour of their own."""
    text = Text()
    for state, group in groupby(turn.pieces, key=lambda piece: piece.state):
        stretch = Text()
        for piece in group:
            stretch += _piece_text(piece, tokenizer)
        text += _bracketed(stretch if whole else _shortened(stretch, *SHOWN[state]), state, plain)
    return _without_empty_lines(text)


def ids_text(turn: Turn, plain: bool) -> Text:
    """The turn's token ids, marked as its text is."""
    text = Text.assemble(("ids ", "dim"))  # a style of the whole would reach what is added to it
    for state, group in groupby(turn.pieces, key=lambda piece: piece.state):
        numbers = " ".join(str(token) for piece in group for token in piece.ids)
        text += _bracketed(Text(numbers, style=STYLES[state]), state, plain) + Text(" ")
    return text


def special_places(piece: Piece, tokenizer: PreTrainedTokenizerBase) -> list[tuple[int, int]]:
    """Characters [start, end) of the special tokens: by ids, so that text which only spells one is not among them."""
    special, places, cursor = set(tokenizer.all_special_ids) | _added(tokenizer), [], 0
    for index, token in enumerate(piece.ids):
        if token in special:
            name = str(tokenizer.convert_ids_to_tokens(token))
            before = len(tokenizer.decode(piece.ids[:index], skip_special_tokens=False))
            start = before if piece.text.startswith(name, before) else piece.text.find(name, cursor)
            if start >= 0:
                cursor = start + len(name)
                places.append((start, cursor))
    return places


def visible(text: str) -> str:
    """The text without what a terminal would obey: ESC becomes ␛, a direction mark its number."""
    return UNSEEN.sub(lambda match: _symbol(ord(match[0])), text)


def is_plain(console: Console) -> bool:
    """Whether colours say nothing here, so that brackets must."""
    return console.no_color or not console.is_terminal


def say(console: Console, line: str | Text, indent: int = 0) -> None:
    """Print a paragraph, never as markup: wrapped on a terminal, as it is elsewhere."""
    text = Text(visible(line)) if isinstance(line, str) else line
    encoding = console.encoding or "utf-8"
    shown = text.plain.encode(encoding, "backslashreplace").decode(encoding)
    if shown != text.plain:  # an old console without our brackets
        text = Text(shown)
    if is_plain(console):
        bare = textwrap.indent(text.plain, " " * indent, lambda line: True)
        console.print(Text(bare), soft_wrap=True, highlight=False)
    else:
        console.print(Padding(text, (0, 0, 0, indent)), highlight=False)


def _head(console: Console, split: str, shown: Shown) -> None:
    """The row's number and size, what was changed, or why it was dropped."""
    kept = [piece for piece in shown.pieces if piece.state != "cut"]
    size = sum(len(piece.ids) for piece in kept)
    trained = sum(len(piece.ids) for piece in kept if piece.state == "trained")
    part = "" if shown.problem else f", {trained:,} trained ({trained / max(size, 1):.0%})"
    title = f"{split} row {shown.index}: {tokens(size)}{part}"
    if is_plain(console):
        say(console, f"--- {title}")
    else:
        console.print(Rule(Text(visible(title), style="bold"), align="left", style="dim"))
    if shown.problem:
        say(console, Text(visible(f"dropped, {shown.problem}: {shown.detail}"), style="bold red"), indent=2)
    for note in shown.notes:
        say(console, Text(visible(note), style="yellow"), indent=2)


def _piece_text(piece: Piece, tokenizer: PreTrainedTokenizerBase) -> Text:
    """The piece in its style; shown characters may be more than the text has, so it goes stretch by stretch."""
    text, cursor = Text(style=STYLES[piece.state]), 0
    for start, end in special_places(piece, tokenizer):
        text.append(visible(piece.text[cursor:start]))
        text.append(piece.text[start:end], style=SPECIAL)
        cursor = end
    return text.append(visible(piece.text[cursor:]))


def _bracketed(text: Text, state: str, plain: bool) -> Text:
    opening, closing = BRACKETS[state] if plain and text.plain else ("", "")
    return Text(opening) + text + Text(closing)


def _without_empty_lines(text: Text) -> Text:
    """The text with a sign instead of the line breaks at either end."""
    body = text.plain.strip("\n")
    start = text.plain.index(body)
    before, after = NEWLINE * start, NEWLINE * (len(text) - start - len(body))
    return Text.assemble((before, "dim"), text[start : start + len(body)], (after, "dim"))


def _shortened(text: Text, head: int, tail: int) -> Text:
    """The text without its middle, left out from blank to blank where there are any nearby."""
    if len(text) < 2 * head + tail:
        return text
    start = max(text.plain.rfind(" ", 0, head), head // 2)
    blank = text.plain.find(" ", len(text) - tail, len(text) - tail // 2)
    end = blank if blank >= 0 else len(text) - tail
    return Text.assemble(text[:start], (f" … {end - start:,} characters not shown …", "dim italic"), text[end:])


def _added(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    return {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}


def _symbol(code: int) -> str:
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else f"\\u{{{code:x}}}"
