r"""Anthropic's dialogues: one text with turns that begin with "\n\nHuman:" and "\n\nAssistant:"."""

import re

from smollit.data.formats.drop_reason import BadRow, DropReason
from smollit.data.formats.types import Message, shown

NAMES = {"Human": "user", "Assistant": "assistant"}
START = re.compile(r"\s*(Human|Assistant):")
# A name begins a turn at the start of the text or behind an empty line: "he said, Human: ..." does not.
TURN = re.compile(r"(?:\A\s*|\r?\n\r?\n)(Human|Assistant):")


def is_dialogue(text: object) -> bool:
    """Whether a value is a text that begins with a turn and holds the assistant's name."""
    return isinstance(text, str) and bool(START.match(text)) and any(name == "Assistant" for name in TURN.findall(text))


def parse_dialogue(text: str, place: str) -> list[Message]:
    """The turns of a dialogue, without the blanks around their texts.

    Raises:
        BadRow: If the text does not begin with a turn.
    """
    before, *rest = TURN.split(text)
    if before.strip() or not rest:
        raise BadRow(
            DropReason.MALFORMED_DIALOGUE, f"{place} must begin with 'Human:' or 'Assistant:', got {shown(text)}"
        )
    return [{"role": NAMES[name], "content": turn.strip()} for name, turn in zip(rest[::2], rest[1::2], strict=True)]


def parse_prompt(text: str, place: str) -> list[Message]:
    """The turns before an answer: a dialogue without its empty last "Assistant:", or a text as one user turn."""
    if not START.match(text):
        return [{"role": "user", "content": text}]
    turns = parse_dialogue(text, place)
    is_open = turns[-1] == {"role": "assistant", "content": ""}
    return turns[:-1] if is_open else turns


def parse_answer(text: str, place: str) -> list[Message]:
    """A dialogue that ends with the answer, or the answer alone."""
    return parse_dialogue(text, place) if START.match(text) else [{"role": "assistant", "content": text.strip()}]
