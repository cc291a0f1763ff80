"""Dialogues as Anthropic writes them: one text, with turns that begin with "\\n\\nHuman:" and "\\n\\nAssistant:"."""

import re

from smollit.data.formats.drop_reason import BadRow, DropReason
from smollit.data.formats.types import Message, shown

DIALOGUE = re.compile(r"\s*(Human|Assistant):")
# A name begins a turn at the start of the text or after an empty line: "he said, Human: ..." does not.
DIALOGUE_TURN = re.compile(r"(?:\A\s*|\r?\n\r?\n)(Human|Assistant):")
DIALOGUE_ROLES = {"Human": "user", "Assistant": "assistant"}


def is_dialogue(text: object) -> bool:
    """Whether a value is a text that begins with a turn and contains the assistant's name."""
    return isinstance(text, str) and bool(DIALOGUE.match(text)) and "Assistant" in DIALOGUE_TURN.findall(text)


def is_open_dialogue(text: object) -> bool:
    """Whether a value is a text that ends with an empty turn of the assistant, as prompts do."""
    if not isinstance(text, str) or not text.lstrip().startswith("Human:"):
        return False
    before = text.rstrip().removesuffix("Assistant:")
    return before[len(before.rstrip()) :].count("\n") > 1


def parse_dialogue(text: str, where: str) -> list[Message]:
    """The turns of a dialogue, without the whitespace around their texts.

    Raises:
        BadRow: If the text does not begin with a turn.
    """
    before, *rest = DIALOGUE_TURN.split(text)
    if before.strip() or not rest:
        raise BadRow(
            DropReason.MALFORMED_DIALOGUE, f"{where} must begin with 'Human:' or 'Assistant:', got {shown(text)}"
        )
    return [
        {"role": DIALOGUE_ROLES[name], "content": turn.strip()}
        for name, turn in zip(rest[::2], rest[1::2], strict=True)
    ]


def parse_dialogue_prompt(text: str, where: str) -> list[Message]:
    """The turns before a response: a dialogue without its empty last "Assistant:", or a text as one user turn."""
    if not DIALOGUE.match(text):
        return [{"role": "user", "content": text}]
    turns = parse_dialogue(text, where)
    is_open = turns[-1] == {"role": "assistant", "content": ""}
    return turns[:-1] if is_open else turns


def parse_dialogue_response(text: str, where: str) -> list[Message]:
    """A dialogue that ends with the response, or the response alone."""
    return parse_dialogue(text, where) if DIALOGUE.match(text) else [{"role": "assistant", "content": text.strip()}]
