"""A row for reading: turns with their tokens, loss tokens and truncated text marked by colour or brackets."""

from dataclasses import replace
from itertools import groupby
from typing import NamedTuple

from rich.console import Console
from rich.rule import Rule
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from smollit.commands.console import is_plain, say, visible
from smollit.commands.inspect.pieces import InspectedRow, Piece, State

STYLES: dict[State, str] = {"loss": "bold green", "context": "default", "truncated": "red strike"}
BRACKETS: dict[State, tuple[str, str]] = {"loss": ("⟦", "⟧"), "context": ("", ""), "truncated": ("{-", "-}")}
SPECIAL = "cyan"
NEWLINE = "⏎"  # stands for a line break at either end of a turn, where it would be an empty line
# Characters at the start and end of a piece of text that are shown, unless all are requested.
SHOWN: dict[State, tuple[int, int]] = {"loss": (500, 250), "context": (500, 250), "truncated": (120, 60)}


class Turn(NamedTuple):
    """Pieces of one role and branch, and the index of the first token in its sequence."""

    role: str
    branch: str
    start: int
    pieces: list[Piece]

    def size(self) -> int:
        """Number of tokens that are kept."""
        return sum(len(piece.ids) for piece in self.pieces if piece.state != "truncated")


def legend(plain: bool) -> Text:
    """The meaning of the colours or brackets."""
    words = [Text(state, style=style) for state, style in STYLES.items()]
    return Text("   ").join(_bracketed(word, state, plain) for word, state in zip(words, STYLES, strict=True)) + Text(
        "\n"
    )


def print_row(
    console: Console,
    split: str,
    row: InspectedRow,
    tokenizer: PreTrainedTokenizerBase,
    *,
    in_full: bool = False,
    ids: bool = False,
) -> None:
    """Print a row.

    Args:
        console: The console.
        split: Name of the row's split.
        row: The row.
        tokenizer: The tokenizer, for its special tokens.
        in_full: Show long texts from end to end.
        ids: Show token ids too.
    """
    if row.problem:  # none of its tokens are in the loss
        pieces = [piece._replace(state="context") if piece.state == "loss" else piece for piece in row.pieces]
        row = replace(row, pieces=pieces)
    _print_head(console, split, row)
    found = turns(row.pieces)
    responses = {turn.branch for turn in found} - {"shared"}
    shared = f"prompt, shared by {'both' if len(responses) == 2 else 'all'} responses"
    for branch, group in groupby(found, key=lambda turn: turn.branch):
        if responses:
            say(console, Text(shared if branch == "shared" else branch, style="bold"), indent=1)
        for turn in group:
            say(console, Text.assemble((f"{visible(turn.role):<10}", "bold"), (describe(turn), "dim")), indent=2)
            say(console, turn_text(turn, tokenizer, plain=is_plain(console), in_full=in_full), indent=4)
            if ids:
                say(console, ids_text(turn, plain=is_plain(console)), indent=4)
    say(console, "")


def turns(pieces: list[Piece]) -> list[Turn]:
    """Pieces by role and branch; both responses of a pair start where the prompt ends."""
    starts = {"shared": 0}
    found = []
    for (role, branch), group in groupby(pieces, key=lambda piece: (piece.role, piece.branch)):
        start = starts.setdefault(branch, starts["shared"])
        found.append(Turn(role, branch, start, list(group)))
        starts[branch] += found[-1].size()
    return found


def describe(turn: Turn) -> str:
    """Tokens [start, end), and which of them are loss tokens or truncated."""
    truncated = sum(len(piece.ids) for piece in turn.pieces if piece.state == "truncated")
    parts = [f"{tokens(turn.size())} [{turn.start}, {turn.start + turn.size()})"] if turn.size() else []
    if spans := loss_spans(turn):
        parts.append("loss " + " ".join(f"[{start}, {end})" for start, end in spans))
    if truncated:
        parts.append(f"{tokens(truncated)} truncated")
    return ", ".join(parts)


def tokens(count: int) -> str:
    """For example `1 token`, `1,024 tokens`."""
    return f"{count:,} {'token' if count == 1 else 'tokens'}"


def loss_spans(turn: Turn) -> list[tuple[int, int]]:
    """Loss tokens [start, end), as indices into the sequence; adjacent pieces are one span."""
    spans: list[tuple[int, int]] = []
    start = turn.start
    for piece in turn.pieces:
        end = start + (len(piece.ids) if piece.state != "truncated" else 0)
        if piece.state == "loss" and end > start:
            joined = bool(spans) and spans[-1][1] == start
            spans = [*spans[:-1], (spans[-1][0], end)] if joined else [*spans, (start, end)]
        start = end
    return spans


def turn_text(turn: Turn, tokenizer: PreTrainedTokenizerBase, *, plain: bool, in_full: bool) -> Text:
    """The turn's text, each piece in the style or brackets of its state, special tokens in a separate colour."""
    text = Text()
    for state, group in groupby(turn.pieces, key=lambda piece: piece.state):
        stretch = Text()
        for piece in group:
            stretch += _piece_text(piece, tokenizer)
        text += _bracketed(stretch if in_full else _shortened(stretch, *SHOWN[state]), state, plain)
    return _without_empty_lines(text)


def ids_text(turn: Turn, *, plain: bool) -> Text:
    """The turn's token ids, marked as its text is."""
    text = Text.assemble(("ids ", "dim"))  # a style of the whole would reach what is added to it
    for state, group in groupby(turn.pieces, key=lambda piece: piece.state):
        numbers = " ".join(str(token) for piece in group for token in piece.ids)
        text += _bracketed(Text(numbers, style=STYLES[state]), state, plain) + Text(" ")
    return text


def special_spans(piece: Piece, tokenizer: PreTrainedTokenizerBase) -> list[tuple[int, int]]:
    """Characters [start, end) of the special tokens: by ids, so that text which only spells one is not among them."""
    special, spans, cursor = set(tokenizer.all_special_ids) | _added(tokenizer), [], 0
    for index, token in enumerate(piece.ids):
        if token in special:
            name = str(tokenizer.convert_ids_to_tokens(token))
            before = len(tokenizer.decode(piece.ids[:index], skip_special_tokens=False))
            start = before if piece.text.startswith(name, before) else piece.text.find(name, cursor)
            if start >= 0:
                cursor = start + len(name)
                spans.append((start, cursor))
    return spans


def _print_head(console: Console, split: str, shown: InspectedRow) -> None:
    """The row's number and size, what was changed in it, or why it was dropped."""
    kept = [piece for piece in shown.pieces if piece.state != "truncated"]
    size = sum(len(piece.ids) for piece in kept)
    in_loss = sum(len(piece.ids) for piece in kept if piece.state == "loss")
    part = "" if shown.problem else f", {in_loss:,} in the loss ({in_loss / max(size, 1):.0%})"
    record = f" ({shown.record})" if shown.record else ""
    title = f"{split} row {shown.index}{record}: {tokens(size)}{part}"
    if is_plain(console):
        say(console, f"--- {title}")
    else:
        console.print(Rule(Text(visible(title), style="bold"), align="left", style="dim"))
    if shown.problem:
        say(console, Text(visible(f"dropped, {shown.problem}: {shown.detail}"), style="bold red"), indent=2)
    for note in shown.notes:
        say(console, Text(visible(note), style="yellow"), indent=2)


def _piece_text(piece: Piece, tokenizer: PreTrainedTokenizerBase) -> Text:
    """The piece in its style, part by part, since more characters may be shown than the text has."""
    text, cursor = Text(style=STYLES[piece.state]), 0
    for start, end in special_spans(piece, tokenizer):
        text.append(visible(piece.text[cursor:start]))
        text.append(piece.text[start:end], style=SPECIAL)
        cursor = end
    return text.append(visible(piece.text[cursor:]))


def _bracketed(text: Text, state: State, plain: bool) -> Text:
    opening, closing = BRACKETS[state] if plain and text.plain else ("", "")
    return Text(opening) + text + Text(closing)


def _without_empty_lines(text: Text) -> Text:
    """The text with a sign instead of the line breaks at either end."""
    body = text.plain.strip("\n")
    start = text.plain.index(body)
    before, after = NEWLINE * start, NEWLINE * (len(text) - start - len(body))
    return Text.assemble((before, "dim"), text[start : start + len(body)], (after, "dim"))


def _shortened(text: Text, head: int, tail: int) -> Text:
    """The text without its middle, which is left out between spaces if there are any nearby."""
    if len(text) < 2 * head + tail:
        return text
    start = max(text.plain.rfind(" ", 0, head), head // 2)
    space = text.plain.find(" ", len(text) - tail, len(text) - tail // 2)
    end = space if space >= 0 else len(text) - tail
    return Text.assemble(text[:start], (f" … {end - start:,} characters not shown …", "dim italic"), text[end:])


def _added(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    return {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
