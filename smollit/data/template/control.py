"""Control text: text in messages that spells a special token or a marker of the template."""

import json
import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer

from smollit.data.formats.drop_reason import BadRow, DropReason
from smollit.data.formats.types import Conversation, Message, Preference
from smollit.data.template.rendering.as_read import as_read
from smollit.data.template.rendering.jinja import Span
from smollit.data.template.rendering.marks import MARKER
from smollit.data.template.rendering.renderer import RenderedChat, Renderer
from smollit.data.template.rendering.shapes import SENTINEL

UNKNOWN = "\U0010ffff"  # a character that no vocabulary has: tokenizers of bytes have tokens for it
BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # such a token of SentencePiece's kind


class ControlText:
    """The control text of a template and its tokenizer, and where messages spell it.

    Args:
        renderer: The template.
    """

    def __init__(self, renderer: Renderer) -> None:
        self.renderer = renderer
        self.tokenizer = renderer.tokenizer

    def find(self, messages: Iterable[Message]) -> list[str]:
        """Every occurrence of control text in all that messages hold."""
        return [found for message in messages for text in _texts(message) for found in self.pattern.findall(text)]

    def find_in(self, record: Conversation | Preference) -> list[str]:
        """Every occurrence of control text in a record, as the template reads its messages."""
        pair = (record.chosen, record.rejected) if isinstance(record, Preference) else ()
        messages = record.prompt if isinstance(record, Preference) else record.messages
        if not self.find([*messages, *pair, record.variables]):
            return []
        renderer = self.renderer.bind(record.variables)
        if not pair:
            return self.find([*_own(renderer, as_read(renderer, messages, {})), record.variables])
        (*before, chosen), (*_, rejected) = (
            _own(renderer, as_read(renderer, [*messages, response], {})) for response in pair
        )
        return self.find([*before, chosen, rejected, record.variables])

    def locate(self, chat: RenderedChat) -> list[Span]:
        """The spans of control text in the contents of a rendered chat.

        Raises:
            BadRow: If it reads as the template's own, or is outside of the contents.
        """
        found, spans = self.find([*chat.messages, chat.variables]), None
        if chat.contents is not None:
            spans = [hit.span() for start, end in chat.contents for hit in self.pattern.finditer(chat.text, start, end)]
        same = next((text for text in found if text not in self._escapable), None)
        if same is not None:
            raise BadRow(
                DropReason.UNESCAPABLE, f"{same!r} in a message gives the same tokens as the template's own marker"
            )
        if found and (spans is None or len(spans) != len(found)):
            raise BadRow(
                DropReason.UNESCAPABLE, f"{found[0]!r} is where the template does more than print a message's text"
            )
        return spans or []

    def without_given(self, chat: RenderedChat) -> RenderedChat:
        """The chat with what its prompts give of the contents of turns as text of the template."""
        renderer = self.renderer.bind(chat.variables)
        messages = _own(renderer, chat.messages)
        if chat.contents is None or messages == chat.messages:
            return chat
        given = [
            len(whole["content"]) - len(own["content"]) for whole, own in zip(chat.messages, messages, strict=True)
        ]
        contents = [(start + count, end) for (start, end), count in zip(chat.contents, given, strict=True)]
        return chat._replace(messages=messages, contents=contents)

    @cached_property
    def markers(self) -> list[str]:
        """Markers that the template writes, such as `<|im_start|>` or `[INST]`."""
        question: list[Message] = [{"role": "user", "content": SENTINEL}]
        completed = [*question, {"role": "assistant", "content": SENTINEL}]
        rendered = (self.renderer.prompt_text(question) + self.renderer.text(completed)).replace(SENTINEL, " ")
        return sorted(set(MARKER.findall(rendered)))

    @cached_property
    def texts(self) -> frozenset[str]:
        """All control texts: the tokenizer's special tokens, named (eos, bos, ...) or only added, and the markers."""
        added = self.tokenizer.added_tokens_decoder.values()
        special = {token.content for token in added if token.special}
        return frozenset({*self.tokenizer.all_special_tokens, *special, *self.markers} - {""})

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Matches any control text, the longest first."""
        texts = sorted(self.texts, key=lambda text: (-len(text), text))
        return re.compile("|".join(map(re.escape, texts)) or r"(?!)")

    @cached_property
    def ids(self) -> frozenset[int]:
        """Token ids of the control texts that are one token, without those that unknown characters get."""
        added = self.tokenizer.added_tokens_decoder.items()
        unknown = self.tokenizer(UNKNOWN, add_special_tokens=False)["input_ids"]
        found = {number: token.content for number, token in added if number not in unknown}
        return frozenset(number for number, text in found.items() if text in self.texts and not BYTE.fullmatch(text))

    @cached_property
    def escaping_tokenizer(self) -> Tokenizer:
        """A copy of the tokenizer with every control token special: `encode_special_tokens` makes it read them as text.

        A pickle does not keep that flag, so it is set where the copy is used.
        """
        parts = json.loads(self.tokenizer.backend_tokenizer.to_str())
        for token in parts["added_tokens"]:
            token["special"] = token["special"] or token["content"] in self.texts
        copy = Tokenizer.from_str(json.dumps(parts))
        copy.no_padding()
        copy.no_truncation()
        return copy

    @cached_property
    def _escapable(self) -> frozenset[str]:
        """Texts that are one token: plain text that spells them has different tokens."""
        return frozenset(token.content for token in self.tokenizer.added_tokens_decoder.values())


def _own(renderer: Renderer, messages: list[Message]) -> list[Message]:
    """The messages without what prompts give of the contents of turns."""
    given = [renderer.num_given(message) for message in messages]
    return [
        {**message, "content": message["content"][count:]} if count else message
        for message, count in zip(messages, given, strict=True)
    ]


def _texts(value: Any) -> Iterator[str]:
    """All texts of a value at any depth, without keys."""
    for item in value.values() if isinstance(value, dict) else value:
        if isinstance(item, str):
            yield item
        elif isinstance(item, (dict, list, tuple)):
            yield from _texts(item)
