"""Loss spans: the characters of a rendered chat whose tokens count in the loss.

Three sources show where an assistant turn starts. *Markers*: the template has `{% generation %}` blocks. *Prefix*: the
turn starts after the prompt that the template renders for it. *Turns*: the full rendering, where prompts differ from it
in a known way (turns.py); *last* is the same, of the last turn only. Either way the span ends with the template's end
marker, and it is verified on every row.
"""

from typing import Literal, NamedTuple, NoReturn

from smollit.data.formats.drop_reason import BadRow, DropReason
from smollit.data.formats.types import Message
from smollit.data.template.rendering.jinja import Span
from smollit.data.template.rendering.renderer import RenderedChat, Renderer, has_extras
from smollit.data.template.train_on import ALL, TrainOn, messages_with_loss
from smollit.data.template.turns import Headers, TurnFinder

SpanSource = Literal["markers", "prefix", "turns", "last"]
FULL: tuple[SpanSource, ...] = ("turns", "last")  # sources that read the full rendering


class LossSpan(NamedTuple):
    """The characters [start, end) of a message that count in the loss, with the message's index."""

    start: int
    end: int
    message: int


class LossSpanFinder:
    """Finds loss spans in rendered chats.

    Args:
        renderer: The renderer of the chats.
        source: What shows where an assistant turn starts.
        falls_back: Whether turns of a row that `source` does not show are found in the full rendering.
    """

    def __init__(self, renderer: Renderer, source: SpanSource, *, falls_back: bool = True) -> None:
        self.renderer = renderer
        self.source = source
        self.falls_back = falls_back
        self._turns = TurnFinder(renderer)

    def wanted(self, messages: list[Message], train_on: TrainOn) -> list[int]:
        """Indices of the messages that count in the loss, as far as `source` shows assistant turns."""
        found = messages_with_loss(messages, train_on)
        if self.source != "last" and train_on != ALL:
            return found
        turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        if train_on == ALL:  # the turns, and what is out of the loss: the text around them needs no span
            found = sorted({*turns, *(n for n, message in enumerate(messages) if not message.get("train", True))})
        if self.source != "last":
            return found
        return [index for index in found if index not in turns[:-1] or "train" in messages[index]]

    def find(self, chat: RenderedChat, wanted: list[int], verified: Headers | None = None) -> list[LossSpan]:
        """The loss spans of the messages `wanted`: of an assistant turn what follows its prompt, of others the content,
        both through the end marker.

        Args:
            chat: The rendered chat.
            wanted: Indices of the messages that count in the loss, in order.
            verified: Headers that equal the generation prompt, known from a chat with the same prompt; more are added.

        Raises:
            BadRow: If a span can't be found, or an assistant turn contains its own end marker.
        """
        verified = {} if verified is None else verified
        try:
            return self._find_by(self.source, chat, wanted, verified)
        except BadRow as bad:
            if not self.falls_back or self.source in FULL or bad.reason != DropReason.REFUSED_BY_TEMPLATE:
                raise
        return self._find_by("turns", chat, wanted, {})

    def _find_by(self, source: SpanSource, chat: RenderedChat, wanted: list[int], verified: Headers) -> list[LossSpan]:
        spans = []
        printed = self._turns.printed(chat) if source in FULL else []
        for index in reversed(wanted):  # the last header is verified; equal headers before it need no more renders
            if source in FULL and chat.messages[index]["role"] == "assistant":
                self._refuse_end_inside(chat, index)
                start, end = self._turns.span(chat, index, printed, verified)
            else:
                start, end = self._span(chat, index, index == wanted[-1], verified)
            self._refuse_end_alone(chat, index, chat.text[start:end])
            start = self._after_given(chat, index) if index in chat.given else start
            spans.append(LossSpan(start, end, index))
        return spans[::-1]

    def find_by_renders(self, messages: list[Message], index: int, text: str) -> Span:
        """The span of an assistant turn, found by rendering the turns before it and through it.

        Raises:
            BadRow: If the template does not render the prompt and then the turn.
        """
        where = f"messages[{index}]"
        through = text if index == len(messages) - 1 else self.renderer.text(messages[: index + 1])
        if not text.startswith(through):
            self._refuse(f"renders the turns up to {where} in another way once more turns follow")
        before = self.renderer.text_before(messages, index)
        if not through.startswith(before):
            self._refuse(f"puts something else before {where} than its generation prompt gives")
        turn, content = through[len(before) :], messages[index]["content"]
        body = content if content in turn else content.strip()  # a template may trim
        start = turn.find(body)
        if start < 0:
            self._refuse(f"changes the text of {where}")
        header = turn[:start].strip()
        if header and not has_extras(messages[index]):
            missing = "but not into its" if self.renderer.generation_prompt else "but has no generation prompt"
            self._refuse(f"puts {header!r} before {where}, {missing} (`add_generation_prompt`)")
        # The newline after an end marker is the template's, not the assistant's: it never counts in the loss.
        end = start + len(body)
        end += len(turn[end:].rstrip())
        return len(before), len(before) + end

    def _span(self, chat: RenderedChat, index: int, is_last: bool, verified: Headers) -> Span:
        """The span of one message."""
        message = chat.messages[index]
        if message["role"] != "assistant":
            span = self._printed(chat, index)
            return span or self._refuse(f"prints more or less than the text and an end marker of messages[{index}]")
        self._refuse_end_inside(chat, index)
        if self.source == "markers":
            return self._span_by_markers(chat, index, is_last)
        return self._span_by_prefix(chat, index, verified)

    def _refuse_end_inside(self, chat: RenderedChat, index: int) -> None:
        """Refuse a turn with its own end marker: in the loss, it would teach to continue after the end."""
        end = self.renderer.turn_end()
        if end and end in chat.messages[index]["content"]:
            raise BadRow(DropReason.END_INSIDE, f"messages[{index}].content contains {end!r}, which ends the turn")

    def _refuse_end_alone(self, chat: RenderedChat, index: int, text: str) -> None:
        """Refuse a turn of which the template prints nothing: only its end marker would be learned."""
        message = chat.messages[index]
        if message["role"] == "assistant" and text.strip() in ("", *self.renderer.ends):
            keys = ", ".join(key for key in message if key not in ("role", "train") and message[key]) or "content"
            raise BadRow(
                DropReason.UNPRINTED,
                f"{self.renderer.name} prints nothing of messages[{index}], which has {keys}: only its end marker would"
                " be learned",
            )

    def _span_by_prefix(self, chat: RenderedChat, index: int, verified: Headers) -> Span:
        """The span of an assistant turn: cheap where its content was located, else by `find_by_renders`."""
        span = self._printed(chat, index)
        if span is None or chat.contents is None:
            return self.find_by_renders(chat.messages, index, chat.text)
        start, end = span
        if index == 0:
            return span
        header = (chat.text[chat.contents[index - 1][1] : start], chat.messages[index - 1]["role"])
        if header not in verified:
            before = self.renderer.prompt_text(chat.messages[:index])
            if not chat.text.startswith(before) or len(before) > start or chat.text[len(before) : start].strip():
                return self.find_by_renders(chat.messages, index, chat.text)
            verified[header] = start - len(before)
        return start - verified[header], end

    def _span_by_markers(self, chat: RenderedChat, index: int, is_last: bool) -> Span:
        """The span of an assistant turn by its generation block, if the block is its content and end marker."""
        where, message = f"messages[{index}]", chat.messages[index]
        said = [number for number, other in enumerate(chat.messages) if other["role"] == "assistant"]
        if len(chat.blocks) != len(said):
            self._refuse(f"has {len(chat.blocks)} generation blocks for {len(said)} assistant turns")
        start, stop = chat.blocks[said.index(index)]
        shape, block = self.renderer.shape("assistant"), chat.text[start:stop]
        body, marker = (shape.fit(message["content"]), shape.end) if shape else (message["content"], None)
        offset = block.find(body) if chat.contents is None else chat.contents[index][0] - start
        if marker is None or offset < 0 or not block.startswith(body, offset):
            self._refuse(f"does not have the text of {where} in its generation block")
        tail = block[offset + len(body) :].rstrip()
        exact = not block[:offset].strip() and tail == marker
        if not (exact or (has_extras(message) and tail.endswith(marker.strip()))):
            self._refuse(f"has a generation block of another text than {where} and the end marker {marker!r}")
        if index > 0:
            self._verify_header(chat, index, start, is_last)
        return start, start + offset + len(body) + len(tail)

    def _verify_header(self, chat: RenderedChat, index: int, start: int, is_last: bool) -> None:
        """Refuse a chat unless the text before a generation block is what the generation prompt gives.

        Templates may rewrite earlier turns once more turns follow, as they do with thoughts. So only the last turn
        must follow its whole prompt; the others must follow the same header.
        """
        header = self.renderer.generation_prompt
        before = chat.text[: start - len(header)] + header
        if is_last:
            before = self.renderer.prompt_text(chat.messages[:index])
        if chat.text[:start].rstrip() != before.rstrip() or len(before) > start:
            self._refuse(f"puts something else before messages[{index}] than its generation prompt gives")

    def _printed(self, chat: RenderedChat, index: int) -> Span | None:
        """The span of a message's content and end marker; None unless the marker follows the content."""
        shape = self.renderer.shape(chat.messages[index]["role"])
        if chat.contents is None or shape is None or shape.end is None or has_extras(chat.messages[index]):
            return None
        start, end = chat.contents[index]
        return (start, end + len(shape.end)) if chat.text.startswith(shape.end, end) else None

    def _after_given(self, chat: RenderedChat, index: int) -> int:
        """Where an assistant turn continues the text of the turn before it."""
        if chat.contents is None:
            self._refuse(f"changes the text of messages[{index}], which continues a given text")
        start, end = chat.contents[index]
        content = chat.messages[index]["content"]
        stripped = 0 if content.startswith(chat.text[start:end]) else len(content) - len(content.lstrip())
        return start + max(0, chat.given[index] - stripped)

    def _refuse(self, what: str) -> NoReturn:
        self.renderer.refuse(what)
