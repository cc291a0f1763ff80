"""Text in messages that spells control tokens: found, counted, and kept apart from what the template itself writes."""

import json
import re
from collections.abc import Iterator
from typing import Any

from tokenizers import Tokenizer

from smollit.data.formats.drop_reason import BadRow, DropReason
from smollit.data.formats.types import Message
from smollit.data.template.renderer import Span


def control_pattern(texts: list[str]) -> re.Pattern[str]:
    """Matches any of the texts, the longest first; nothing if there are none."""
    return re.compile("|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True)) or r"(?!)")


def find_control(pattern: re.Pattern[str], messages: list[Message]) -> list[str]:
    """Control texts in all that messages hold, each time that they stand there."""
    return [found for message in messages for text in _texts(message) for found in pattern.findall(text)]


def control_spans(pattern: re.Pattern[str], text: str, contents: list[Span]) -> list[Span]:
    """Where control texts stand in the contents of a rendered chat."""
    return [found.span() for start, end in contents for found in pattern.finditer(text, start, end)]


def check_escapable(found: list[str], places: list[Span] | None, can_escape: frozenset[str]) -> None:
    """Refuse control text that would be read as the template's own.

    Args:
        found: Control texts of the row.
        places: Where they stand in the rendered chat; None if not known.
        can_escape: Tokens that plain text is told apart from.

    Raises:
        BadRow: If one of them can't be told apart, or not all of them were located.
    """
    same = next((text for text in found if text not in can_escape), None)
    if same is not None:
        raise BadRow(
            DropReason.UNESCAPABLE, f"{same!r} in a message gives the same tokens as the template's own marker"
        )
    if places is None or len(places) != len(found):
        raise BadRow(
            DropReason.UNESCAPABLE, f"{found[0]!r} stands where the template does more than print a message's text"
        )


def plain_tokenizer(backend: Tokenizer, control: frozenset[str]) -> Tokenizer:
    """A copy whose control tokens are all special: with `encode_special_tokens` set, it reads them as plain text.

    The flag is not kept by a pickle, so it is set where the copy is used.
    """
    parts = json.loads(backend.to_str())
    for token in parts["added_tokens"]:
        token["special"] = token["special"] or token["content"] in control
    copy = Tokenizer.from_str(json.dumps(parts))
    copy.no_padding()
    copy.no_truncation()
    return copy


def _texts(value: Any) -> Iterator[str]:
    """All texts of a value, at any depth, but for keys."""
    for item in value.values() if isinstance(value, dict) else value:
        if isinstance(item, str):
            yield item
        elif isinstance(item, (dict, list, tuple)):
            yield from _texts(item)
