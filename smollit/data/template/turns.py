"""Loss spans from the full rendering, for templates that print a turn in another way once more turns follow.

A span starts where inference starts: after the prompt that the template renders for the turn. Reasoning models have
templates whose prompts differ from the full chat in known ways, and then the span starts after the same header:

- Earlier reasoning is removed, so the turns before are printed in another way, and the header is the same.
- The prompt ends with whitespace that the turn lacks: `<think>\\n`, and the turn has `<think></think>`.
- The prompt opens a reasoning block, and the turn's content begins with it: `<think>\\n`.
- The prompt ends with a reasoning block, or with what opens one, and the turn is printed without one. This is known
  of earlier turns only: a last turn without the block would be trained after another text than inference gives.

What the template writes between the header and the content, such as an empty reasoning block, counts in the loss,
because at inference the model must write it.
"""

from typing import NoReturn

from smollit.data.formats.drop_reason import BadRow, DropReason
from smollit.data.formats.types import Message
from smollit.data.template.rendering.jinja import Span
from smollit.data.template.rendering.marks import MARKER, Printed, common_length, locate, tail_of
from smollit.data.template.rendering.renderer import RenderedChat, Renderer, has_extras

# (text between the contents of two messages, role of the first) -> characters of it that the prompt does not hold
Headers = dict[tuple[str, str], int]
TAIL = 20  # characters of a content that must be where its end is


class TurnFinder:
    """Finds the span of one assistant turn in a rendered chat.

    Args:
        renderer: The renderer of the chat.
    """

    def __init__(self, renderer: Renderer) -> None:
        self.renderer = renderer

    def printed(self, chat: RenderedChat) -> list[Printed]:
        """Where each message of the chat is printed."""
        if chat.contents is None or any(map(has_extras, chat.messages)):
            return locate(self.renderer.text, chat.messages, chat.text)
        return [Printed(*span, span, {"content": span}) for span in chat.contents]

    def span(self, chat: RenderedChat, index: int, printed: list[Printed], verified: Headers) -> Span:
        """The span of an assistant turn.

        Args:
            chat: The rendered chat.
            index: Index of the turn.
            printed: Where its messages are printed.
            verified: Headers of plain turns that were found in this chat, or one with the same prompt; more are added.

        Raises:
            BadRow: If its start or its end can't be found or verified.
        """
        key, first = _header_key(chat, index), printed[index].start or 0
        known = verified.get(key) if key is not None else None
        start = first - known if known is not None else self._start(chat, index, printed)
        if key is not None and start <= first:
            verified[key] = first - start
        end = self._end(chat, index, printed)
        if start > end:
            self._refuse(f"does not print the text of messages[{index}] after its header")
        self._verify_content(chat, index, printed, start)
        return start, end

    def _start(self, chat: RenderedChat, index: int, printed: list[Printed]) -> int:
        """Where the turn starts.

        Raises:
            BadRow: If the prompt differs from the chat in no known way.
        """
        limit = next((place for place in printed[index][:2] if place is not None), len(chat.text))
        limit += self.renderer.num_given(chat.messages[index])
        before = self.renderer.text_before(chat.messages, index)
        is_prompt = index > 0 or not self.renderer.generation_prompt  # a chat that starts with the turn has no prompt
        if is_prompt and chat.text.startswith(before) and len(before) <= limit:
            found = len(before)
        else:
            floor = max((place.end for place in printed[:index] if place.end is not None), default=0)
            found = self._known_difference(chat, index, before, (floor, limit))
        self._verify_own(chat, index, printed, found)
        return found

    def _known_difference(self, chat: RenderedChat, index: int, before: str, between: Span) -> int:
        """Where the turn starts after the header of a prompt that the chat does not start with."""
        header = self.renderer.generation_prompt
        if index > 0:
            header = before[common_length(self.renderer.text(chat.messages[:index]), before) :]
        text, is_last = chat.text[slice(*between)], _is_last(chat.messages, index)
        for cut in range(len(pieces := split_at_markers(header)), 0, -1):
            shared, lacks = "".join(pieces[:cut]), "".join(pieces[cut:])
            position = text.rfind(shared)
            if position < 0:
                continue
            rest = text[position + len(shared) :]
            start = between[0] + position + len(shared)
            if index > 0 and not before.removesuffix(lacks).endswith(chat.text[between[0] : start]):
                break
            if not lacks or (not lacks.strip() and rest.strip()):
                return start
            block = MARKER.match(lacks)
            calls = has_extras(chat.messages[index]) and block and not rest.lstrip().startswith(block.group())
            if not is_last and block and (calls or not rest.strip()):
                return start
            return self._refuse(_other_block(index, lacks))
        return self._refuse(f"puts something else before messages[{index}] than its generation prompt gives")

    def _verify_own(self, chat: RenderedChat, index: int, printed: list[Printed], begin: int) -> None:
        """Refuse a chat if the template writes more before the content than whitespace or a block of its own."""
        start = printed[index].start
        own = chat.text[begin:start].strip() if start is not None else ""
        if not own or (has_extras(chat.messages[index]) and self.renderer.generation_prompt):
            return
        if not self.renderer.generation_prompt:
            self._refuse(
                f"puts {own!r} before messages[{index}], but has no generation prompt (`add_generation_prompt`)"
            )
        if not MARKER.fullmatch(split_at_markers(own)[-1]) or own.endswith(self.renderer.generation_prompt.strip()):
            self._refuse(f"puts {own!r} before messages[{index}], but not into its (`add_generation_prompt`)")

    def _verify_content(self, chat: RenderedChat, index: int, printed: list[Printed], start: int) -> None:
        """Refuse a turn whose content is printed in another form; of earlier turns the end may be printed alone."""
        content, (first, last) = chat.messages[index]["content"].strip(), printed[index].content
        if last is None:
            if content and not has_extras(chat.messages[index]):
                self._refuse(f"does not print the text of messages[{index}]")
            return
        if first is not None:
            is_right = chat.text[first:last].strip() == content
        else:
            is_end = chat.text[start:last].rstrip().endswith(content[-TAIL:].split("\n")[-1])
            is_right = is_end and not _is_last(chat.messages, index)
        if not is_right:
            self._refuse(f"changes the text of messages[{index}]")

    def _end(self, chat: RenderedChat, index: int, printed: list[Printed]) -> int:
        """Where the turn ends: after its end marker."""
        position = printed[index].end
        if position is None:
            raise BadRow(DropReason.UNPRINTED, f"{self.renderer.name} prints no text of messages[{index}]")
        rest = chat.text[position:]
        space = len(rest) - len(rest.lstrip())
        for marker in self.renderer.ends:
            if marker and rest.startswith(marker, space):
                return position + space + len(marker)
        if not has_extras(chat.messages[index]) and "" in self.renderer.ends:
            return position
        tail = (tail_of(self.renderer.text, chat.messages[: index + 1]) or "").rstrip()
        for marker in self.renderer.ends:
            tail = tail[: tail.index(marker) + len(marker)] if marker and marker in tail else tail
        if not rest.startswith(tail):
            self._refuse(f"ends messages[{index}] in another way once more turns follow")
        return position + len(tail)

    def _refuse(self, what: str) -> NoReturn:
        self.renderer.refuse(what)


def split_at_markers(text: str) -> list[str]:
    """The markers of a text and what is between them, in order."""
    pieces, cursor = [], 0
    for found in MARKER.finditer(text):
        pieces += [text[cursor : found.start()], found.group()]
        cursor = found.end()
    return [piece for piece in (*pieces, text[cursor:]) if piece]


def _other_block(index: int, lacks: str) -> str:
    return (
        f"ends its generation prompt with {lacks!r}, which messages[{index}] does not begin with: set a switch in"
        " `data.chat_template_kwargs`, such as {enable_thinking: true} where turns have reasoning and {enable_thinking:"
        " false} where they have none"
    )


def _header_key(chat: RenderedChat, index: int) -> tuple[str, str] | None:
    """What the header of a plain turn depends on; None if there is more to it."""
    if index == 0 or chat.contents is None or any(map(has_extras, chat.messages)):
        return None
    before, here = chat.contents[index - 1], chat.contents[index]
    kind = "last" if _is_last(chat.messages, index) else chat.messages[index - 1]["role"]
    return chat.text[before[1] : here[0]], kind


def _is_last(messages: list[Message], index: int) -> bool:
    """Whether no user turn follows: templates remove reasoning from the turns before the last user turn."""
    return all(message["role"] != "user" for message in messages[index:])
