"""Properties of a template, determined on probe chats when it is loaded: how loss spans are found; its system text."""

import re
from typing import NamedTuple

from smollit.data.formats.drop_reason import BadRow
from smollit.data.formats.types import Message
from smollit.data.template.loss_spans import FULL, LossSpanFinder, SpanSource
from smollit.data.template.rendering.marks import MARKER
from smollit.data.template.rendering.renderer import Renderer
from smollit.data.template.rendering.shapes import SENTINEL

GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
DROP = ("drop", "")  # an empty text is no system turn
NUM_NEEDED = 2  # probe chats, the first, whose turns must be found
USER: Message = {"role": "user", "content": "Who are you?"}


class SystemTurn(NamedTuple):
    """The system turn that a template adds by default: what precedes the text, the text, and what ends the turn."""

    before: str
    text: str
    end: str

    @property
    def whole(self) -> str:
        """The turn as it is rendered."""
        return self.before + self.text + self.end


def probe_chats(opens: str = "") -> list[list[Message]]:
    """One turn, several turns, with a system text, with a tool's result; turns begin with what `opens` opens."""
    block = f"{opens}Hm.{MARKER.sub(lambda found: f'</{found.group()[1:]}', opens.strip())}" if opens else ""
    asked = [{"role": "user", "content": f"Question {number}?"} for number in range(3)]
    said = [{"role": "assistant", "content": f"{block}Reply {number}."} for number in range(3)]
    turns = [message for pair in zip(asked, said, strict=True) for message in pair]
    system, tool = {"role": "system", "content": "Be kind."}, {"role": "tool", "content": "42"}
    return [turns[:2], turns, [system, *turns[:4]], [asked[0], said[0], tool, said[1], *turns[4:]]]


def choose_span_source(renderer: Renderer) -> SpanSource:
    """Markers if the template has sound ones, else prefixes if those are sound, else the full rendering, else of that
    the last turn.

    Raises:
        ValueError: If none is sound, with the reasons.
    """
    reasons: dict[str, None] = {}
    sources: tuple[SpanSource, ...] = ("markers", "prefix", "turns", "last")
    for source in sources if GENERATION.search(renderer.source) else sources[1:]:
        try:
            _verify_spans(LossSpanFinder(renderer, source, falls_back=False))
            return source
        except BadRow as bad:
            reasons[bad.detail] = None
    raise ValueError(
        f"`data.chat_template`: {', and '.join(reasons)}. Fix the template,"
        " or set `data.chat_template` to chatml or another file"
    )


def _verify_spans(finder: LossSpanFinder) -> None:
    """Find the loss spans of the probe chats, each with every check."""
    for number, messages in enumerate(probe_chats(finder.renderer.opens)):
        wanted = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        wanted = wanted[-1:] if finder.source == "last" else wanted
        try:
            chat = finder.renderer.render(messages, with_blocks=finder.source == "markers")
        except BadRow:
            if number == 0:
                raise
            continue  # a template need not know system or tool turns
        if finder.source in FULL and number >= NUM_NEEDED:
            continue  # rows with system or tool turns that are not sound are refused
        spans = [span[:2] for span in finder.find(chat, wanted)]
        if finder.source == "prefix" and spans != [
            finder.find_by_renders(messages, index, chat.text) for index in wanted
        ]:
            finder.renderer.refuse("does not print all assistant turns between the same header and end marker")


def find_default_system(renderer: Renderer) -> SystemTurn | None:
    """The system turn that the template adds to a chat without one; None if it adds none.

    A chat without a system message has it where a chat with a system message has that message.
    """
    system: Message = {"role": "system", "content": SENTINEL}
    try:
        alone, both, without = (renderer.text(chat) for chat in ([system], [system, USER], [USER]))
    except BadRow:
        return None
    before, found, end = alone.partition(SENTINEL)
    after = end + both[len(alone) :]
    text = without[len(before) : len(without) - len(after)]
    same = both.startswith(alone) and without == before + text + after
    return SystemTurn(before, text, end) if found and same and text else None


def change_default_system(renderer: Renderer, choice: str) -> str:
    """The template's source with its default system text removed (`drop`), or replaced by `choice`.

    Raises:
        ValueError: If the source does not contain the text, so that it can't be changed, or there is none to replace.
    """
    turn = find_default_system(renderer)
    if turn is None and choice in DROP:
        return renderer.source
    if turn is None:
        raise ValueError(
            f"`data.default_system` is a text, but {renderer.name} adds no system text that it could replace: put a"
            " system message into the data, or give a Jinja file that adds one as `data.chat_template`"
        )
    for old, new in _replacements(turn, choice):
        for written, source in _spellings(old, new):
            changed = renderer.source.replace(written, source)
            if changed != renderer.source and _changes_only(renderer, changed, turn, (old, new)):
                return changed
    raise ValueError(
        f"`data.default_system` can't be applied: the source of {renderer.name} does not contain its system text"
        f" {turn.text!r} in a form that can be changed. Give a Jinja file as `data.chat_template`, or put system"
        " messages into the data"
    )


def _replacements(turn: SystemTurn, choice: str) -> list[tuple[str, str]]:
    """Rendered texts to replace, each with its new text; a turn to drop may begin with BOS, which stays."""
    if choice not in DROP:
        return [(turn.text, choice)]
    return [(turn.whole[start:], "") for start in range(len(turn.before))]


def _spellings(old: str, new: str) -> list[tuple[str, str]]:
    """How a source may write a text, and its replacement: inside a Jinja string, or as bare text."""
    escaped = new.replace("\\", "\\\\").replace("'", "\\'").replace('"', '\\"')
    lines = old.replace("\\", "\\\\").replace("\n", "\\n")
    olds = dict.fromkeys((old, lines, lines.replace("'", "\\'"), lines.replace('"', '\\"'), old.replace("'", "\\'")))
    return [(written, source) for written in olds for source in dict.fromkeys((escaped, new))]


def _changes_only(renderer: Renderer, source: str, turn: SystemTurn, change: tuple[str, str]) -> bool:
    """Whether chats without a system message have the new text instead of the old one, and others are unchanged."""
    old, new = change
    changed = Renderer(renderer.tokenizer, source, renderer.name)
    start = len(turn.whole) - len(turn.end if new else "") - len(old)
    for messages in [[USER], *probe_chats()]:
        for prompt in (False, True):
            text = _text(renderer, messages, prompt)
            if text is not None and text.startswith(turn.whole):
                text = text[:start] + new + text[start + len(old) :]
            if _text(changed, messages, prompt) != text:
                return False
    return _text(changed, [USER], False) != _text(renderer, [USER], False)


def _text(renderer: Renderer, messages: list[Message], generation_prompt: bool) -> str | None:
    """The text of a chat; None if the template refuses it."""
    try:
        return renderer.text(messages, generation_prompt=generation_prompt)
    except BadRow:
        return None
