"""Shapes: how a template prints the messages of a role, determined on probe chats."""

from collections.abc import Callable
from typing import NamedTuple

from smollit.data.formats.drop_reason import BadRow
from smollit.data.formats.types import Message
from smollit.data.template.rendering.marks import MARKER, Render

SENTINEL = "\ue000content\ue001"  # private-use characters: no template prints this text


class Shape(NamedTuple):
    """How a template prints the messages of one role.

    Args:
        fit: What it does to the content: nothing, or a strip at one or both ends.
        end: What follows the content and belongs to the turn, such as `<|im_end|>`, without trailing whitespace; None
            if it can't be separated from the next turn.
    """

    fit: Callable[[str], str]
    end: str | None


def try_shape(render: Render, chat: list[Message]) -> Shape | None:
    """How the message whose content is SENTINEL is printed; None if the template fails on it or rewrites it."""
    index = next(index for index, message in enumerate(chat) if message["content"] == SENTINEL)

    def printed(content: str) -> str:
        return render([*chat[:index], {**chat[index], "content": content}, *chat[index + 1 :]])

    try:
        text, spaced = printed(SENTINEL), printed(f" {SENTINEL} ")
    except BadRow:
        return None
    before, found, after = text.partition(SENTINEL)
    fits: dict[str, Callable[[str], str]] = {
        f"{before} {SENTINEL} {after}": str,
        f"{before}{SENTINEL}{after}": str.strip,
        f"{before}{SENTINEL} {after}": str.lstrip,
        f"{before} {SENTINEL}{after}": str.rstrip,
    }
    if not found or spaced not in fits:
        return None
    return Shape(fits[spaced], after.rstrip() if index == len(chat) - 1 else None)


def first_marker(text: str) -> str:
    """The first marker of a text, if the text starts with it; else the whole text."""
    found = MARKER.match(text.lstrip())
    return found.group() if found else text.strip()


def probes(role: str, content: str) -> list[list[Message]]:
    """Chats with a message of the role, last where templates allow it."""
    turn, user = {"role": role, "content": content}, {"role": "user", "content": "a"}
    said = {"role": "assistant", "content": "b"}
    if role == "assistant":
        return [[user, turn], [turn]]
    return [[turn], [user, turn], [user, said, turn], [turn, user]]
