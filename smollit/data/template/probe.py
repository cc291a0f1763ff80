"""Which way of finding answers is sound for a template: tried on chats of some kinds when it is loaded."""

import re

from smollit.data.formats.drop_reason import BadRow
from smollit.data.formats.types import Message
from smollit.data.template.loss_spans import Proven, Way, answer_span, lay_out, trained_spans
from smollit.data.template.renderer import Renderer

GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


def choose_way(renderer: Renderer) -> Way:
    """Markers if the template has sound ones, else prefix rendering if that is sound.

    Raises:
        ValueError: If neither is, with the reasons.
    """
    reasons = []
    ways: tuple[Way, ...] = ("markers", "prefix") if GENERATION.search(renderer.text) else ("prefix",)
    for way in ways:
        try:
            _probe(renderer, way)
            return way
        except BadRow as bad:
            reasons.append(bad.detail)
    raise ValueError(
        f"`data.chat_template`: {', and '.join(reasons)}. Mend it,"
        " or set `data.chat_template` to chatml or another file"
    )


def _probe(renderer: Renderer, way: Way) -> None:
    """Find the answers of chats of some kinds in a way, each with every check."""
    for number, messages in enumerate(probe_chats()):
        wanted = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        try:
            chat = lay_out(renderer, messages, way)
        except BadRow:
            if number == 0:
                raise
            continue  # a template need not know system or tool turns
        spans = trained_spans(renderer, chat, wanted, way, Proven({}))
        slow = [answer_span(renderer, messages, index, chat.text) for index in wanted] if way == "prefix" else spans
        if spans != slow:
            renderer.refuse("does not print all answers between the same header and the same end marker")


def probe_chats() -> list[list[Message]]:
    """One turn, several turns, with a system text, with a tool's result."""
    asked = [{"role": "user", "content": f"Question {number}?"} for number in range(3)]
    said = [{"role": "assistant", "content": f"Reply {number}."} for number in range(3)]
    turns = [message for pair in zip(asked, said, strict=True) for message in pair]
    system, tool = {"role": "system", "content": "Be kind."}, {"role": "tool", "content": "42"}
    return [turns[:2], turns, [system, *turns[:4]], [asked[0], said[0], tool, said[1], *turns[4:]]]
