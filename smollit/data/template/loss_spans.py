"""Where contents stand in a rendered chat, and which characters of it are trained: by rendering, never by searching.

Two ways to find an answer. *Markers*: the template says it with `{% generation %}`. *Prefix*: an answer starts behind
what the template gives as the prompt for it. Both end with the template's end marker, and both are proven on each row.
"""

from collections.abc import Iterator
from itertools import chain
from typing import Literal, NamedTuple

from smollit.data.formats.drop_reason import BadRow, DropReason
from smollit.data.formats.types import Message
from smollit.data.template.renderer import SENTINEL, Renderer, Span

Way = Literal["markers", "prefix"]
PRIVATE = range(0xE000, 0xF900)


class Chat(NamedTuple):
    """A rendered chat.

    Args:
        messages: What was rendered.
        text: The rendered text.
        contents: Where each message's content stands in it; None where the template does more than print contents.
        blocks: Its `{% generation %}` blocks.
    """

    messages: list[Message]
    text: str
    contents: list[Span] | None
    blocks: list[Span]


class Proven(NamedTuple):
    """Headers before answers that were found to equal the generation prompt: header -> blanks behind the prompt."""

    headers: dict[tuple[str, str], int]


def lay_out(renderer: Renderer, messages: list[Message], way: Way) -> Chat:
    """Render a chat and find its contents."""
    text, blocks = renderer.render_blocks(messages) if way == "markers" else (renderer.render(messages), [])
    return Chat(messages, text, locate(renderer, messages, text), blocks)


def lay_out_like(renderer: Renderer, chat: Chat, last: Message, way: Way) -> Chat:
    """The chat with another last message: no contents to find if nothing else in its text differs."""
    messages = [*chat.messages[:-1], last]
    text, blocks = renderer.render_blocks(messages) if way == "markers" else (renderer.render(messages), [])
    body = _body(renderer, last)
    if chat.contents is None or body is None:
        return Chat(messages, text, locate(renderer, messages, text), blocks)
    start, end = chat.contents[-1]
    if text != chat.text[:start] + body + chat.text[end:]:
        return Chat(messages, text, locate(renderer, messages, text), blocks)
    return Chat(messages, text, [*chat.contents[:-1], (start, start + len(body))], blocks)


def locate(renderer: Renderer, messages: list[Message], text: str) -> list[Span] | None:
    """Where each content stands in `text`; None where that can't be proven.

    The proof: rendered once more with a private-use character on either side of each content, the text is the same
    but for these characters, and between them stands the content. What the template writes between the contents of
    messages of such roles is kept: where the next such chat is just that with other contents, no second render is
    needed.
    """
    fitted = [_body(renderer, message) for message in messages]
    bodies = [body for body in fitted if body is not None]
    if len(bodies) < len(messages):
        return None
    roles = None if any(map(has_extras, messages)) else tuple(message["role"] for message in messages)
    known = renderer.skeletons.get(roles)
    if known and text == "".join(chain.from_iterable(zip(known, [*bodies, ""], strict=True))):
        return _spans_between(known, bodies)
    skeleton = _skeleton(renderer, messages, bodies, text)
    if skeleton and roles:
        renderer.keep_skeleton(roles, skeleton)
    return _spans_between(skeleton, bodies) if skeleton else None


def _skeleton(renderer: Renderer, messages: list[Message], bodies: list[str], text: str) -> list[str] | None:
    """What the template writes before, between and behind the contents; None if the proof fails."""
    left, right = unused_characters(text)
    try:
        marked = renderer.render(
            [{**message, "content": f"{left}{body}{right}"} for message, body in zip(messages, bodies, strict=True)]
        )
    except BadRow:
        return None
    before, *parts = marked.split(left)
    if len(parts) != len(messages) or right in before or marked.replace(left, "").replace(right, "") != text:
        return None
    pairs = [part.partition(right) for part in parts]
    if any(found != body or right in behind for (found, _, behind), body in zip(pairs, bodies, strict=True)):
        return None
    return [before, *(behind for _, _, behind in pairs)]


def _spans_between(skeleton: list[str], bodies: list[str]) -> list[Span]:
    """Where contents stand between the parts of a skeleton."""
    spans, cursor = [], 0
    for before, body in zip(skeleton, bodies, strict=False):
        start = cursor + len(before)
        cursor = start + len(body)
        spans.append((start, cursor))
    return spans


def unused_characters(text: str) -> tuple[str, str]:
    """Two private-use characters that the text does not hold."""
    free: Iterator[str] = (chr(code) for code in PRIVATE if chr(code) not in text)
    found = next(free, None), next(free, None)
    if found[0] is None or found[1] is None:
        raise BadRow(
            DropReason.REFUSED_BY_TEMPLATE, "the text holds all private-use characters of Unicode's basic plane"
        )
    return found[0], found[1]


def trained_spans(renderer: Renderer, chat: Chat, wanted: list[int], way: Way, proven: Proven) -> list[Span]:
    """The characters to train of each message in `wanted`: for answers from behind the prompt, else from the content
    on, through the end marker.

    Raises:
        BadRow: If they can't be found, or an answer holds its own end marker.
    """
    spans = []
    for index in reversed(wanted):  # the last answer's header is proven; equal headers before it need no more renders
        message = chat.messages[index]
        if message["role"] != "assistant":
            spans.append(_printed(renderer, chat, index) or _refuse_rewritten(renderer, index))
            continue
        check_end(renderer, message, index)
        if way == "markers":
            spans.append(_block_span(renderer, chat, index, is_last=index == wanted[-1]))
        else:
            spans.append(_prefix_span(renderer, chat, index, proven))
    return spans[::-1]


def check_end(renderer: Renderer, message: Message, index: int) -> None:
    """Refuse an answer that holds the end marker: trained, it would teach to go on behind the end."""
    end = renderer.turn_end()
    if end and end in message["content"]:
        raise BadRow(DropReason.END_INSIDE, f"messages[{index}].content holds {end!r}, which ends the turn")


def answer_span(renderer: Renderer, messages: list[Message], index: int, text: str) -> Span:
    """The span of an answer, found by renders of the turns before and through it.

    Raises:
        BadRow: If the template renders the turn in another way than the prompt and the answer one after the other.
    """
    where = f"messages[{index}]"
    through = text if index == len(messages) - 1 else renderer.render(messages[: index + 1])
    if not text.startswith(through):
        renderer.refuse(f"renders the turns up to {where} in another way once more turns follow")
    before = text_before(renderer, messages, index)
    if not through.startswith(before):
        renderer.refuse(f"puts something else before {where} than its generation prompt gives")
    turn, content = through[len(before) :], messages[index]["content"]
    body = content if content in turn else content.strip()  # a template may trim
    start = turn.find(body)
    if start < 0:
        renderer.refuse(f"changes the text of {where}")
    header = turn[:start].strip()
    if header and not has_extras(messages[index]):
        missing = "but has no generation prompt" if not renderer.has_generation_prompt else "but not into its"
        renderer.refuse(f"puts {header!r} before {where}, {missing} (`add_generation_prompt`)")
    # The newline behind an end marker is the template's, not the answer's: never trained.
    end = start + len(body)
    end += len(turn[end:].rstrip())
    return len(before), len(before) + end


def text_before(renderer: Renderer, messages: list[Message], index: int) -> str:
    """What stands before an answer at inference."""
    if index > 0:
        return renderer.prompt_text(messages[:index])
    # A chat that starts with an answer: there is nothing to render a generation prompt behind.
    return renderer.render([{**messages[0], "content": SENTINEL}]).partition(SENTINEL)[0]


def has_extras(message: Message) -> bool:
    """Whether a message has more than a role and a text, such as tool calls, which the template may print."""
    return len(message) > 2 + ("train" in message)


def _body(renderer: Renderer, message: Message) -> str | None:
    """The content as the template prints it; None if that is not known."""
    shape = renderer.shape(message["role"])
    return shape.fit(message["content"]) if shape else None


def _printed(renderer: Renderer, chat: Chat, index: int) -> Span | None:
    """The span of a message's content and its end marker; None if they don't stand there one after the other."""
    shape = renderer.shape(chat.messages[index]["role"])
    if chat.contents is None or shape is None or shape.end is None or has_extras(chat.messages[index]):
        return None
    start, end = chat.contents[index]
    return (start, end + len(shape.end)) if chat.text.startswith(shape.end, end) else None


def _refuse_rewritten(renderer: Renderer, index: int) -> Span:
    renderer.refuse(f"prints more or less than the text and an end marker of messages[{index}]")


def _prefix_span(renderer: Renderer, chat: Chat, index: int, proven: Proven) -> Span:
    """The span of an answer: cheap where its content was located, else by `answer_span`."""
    span = _printed(renderer, chat, index)
    if span is None or chat.contents is None:
        return answer_span(renderer, chat.messages, index, chat.text)
    start, end = span
    if index == 0:
        return span
    key = (chat.text[chat.contents[index - 1][1] : start], chat.messages[index - 1]["role"])
    if key not in proven.headers:
        before = renderer.prompt_text(chat.messages[:index])
        if not chat.text.startswith(before) or len(before) > start or chat.text[len(before) : start].strip():
            return answer_span(renderer, chat.messages, index, chat.text)
        proven.headers[key] = start - len(before)
    return start - proven.headers[key], end


def _block_span(renderer: Renderer, chat: Chat, index: int, is_last: bool) -> Span:
    """The span of an answer by its generation block, once this is proven to hold the answer and its end marker."""
    where, message = f"messages[{index}]", chat.messages[index]
    answers = [place for place, other in enumerate(chat.messages) if other["role"] == "assistant"]
    if len(chat.blocks) != len(answers):
        renderer.refuse(f"has {len(chat.blocks)} generation blocks for {len(answers)} answers")
    start, stop = chat.blocks[answers.index(index)]
    shape, block = renderer.shape("assistant"), chat.text[start:stop]
    body, marker = (shape.fit(message["content"]), shape.end) if shape else (message["content"], None)
    offset = block.find(body) if chat.contents is None else chat.contents[index][0] - start
    if marker is None or offset < 0 or not block.startswith(body, offset):
        renderer.refuse(f"has not the text of {where} in its generation block")
    tail = block[offset + len(body) :].rstrip()
    exact = not block[:offset].strip() and tail == marker
    if not (exact or (has_extras(message) and tail.endswith(marker.strip()))):
        renderer.refuse(f"has a generation block of another text than {where} and the end marker {marker!r}")
    _check_header(renderer, chat, index, start, is_last)
    return start, start + offset + len(body) + len(tail)


def _check_header(renderer: Renderer, chat: Chat, index: int, start: int, is_last: bool) -> None:
    """What stands before a generation block is what the generation prompt gives.

    Earlier turns may be rewritten once more turns follow (as templates do with thoughts), so there only the header
    must be the same.
    """
    if index == 0:
        return
    header = renderer.generation_prompt
    before = renderer.prompt_text(chat.messages[:index]) if is_last else chat.text[: start - len(header)] + header
    if chat.text[:start].rstrip() != before.rstrip() or len(before) > start:
        renderer.refuse(f"puts something else before messages[{index}] than its generation prompt gives")
