"""What a row says and the template does not print. Rendering with and without it decides."""

from collections.abc import Iterator

from smollit.data.formats.drop_reason import BadRow
from smollit.data.formats.types import Message
from smollit.data.template.rendering.jinja import read_variables
from smollit.data.template.rendering.marks import Printed, locate
from smollit.data.template.rendering.renderer import RenderedChat, Renderer, has_extras

USUAL = ("role", "content", "train")
EARLIER = "of earlier turns"
OF_RESULTS = "of tool results"


def find_unprinted(renderer: Renderer, chat: RenderedChat) -> list[str]:
    """Names of what the template does not print: keys of messages, calls of tools, tools, and unknown switches.

    Args:
        renderer: The renderer of the chat, with its variables.
        chat: The rendered chat.
    """
    found: dict[str, None] = {}
    extras = any(map(has_extras, chat.messages))
    if chat.contents is None or extras:
        printed = locate(renderer.text, chat.messages, chat.text)
        found |= dict.fromkeys(_contents(renderer, chat, printed))
    if extras:
        found |= dict.fromkeys(_keys(renderer, chat, printed))
        found |= dict.fromkeys(_calls(renderer, chat))
    if chat.variables:
        found |= dict.fromkeys(_variables(renderer, chat))
    return list(found)


def _contents(renderer: Renderer, chat: RenderedChat, printed: list[Printed]) -> Iterator[str]:
    """Contents: those that marks show are printed, others are tried."""
    for index, message in enumerate(chat.messages):
        starts, ends = (place is not None for place in printed[index].content)
        is_located = "content" in printed[index].places or not message["content"].strip()
        if starts != ends:
            whose = EARLIER if message["role"] == "assistant" else f"of role {message['role']}"
            yield f"a part of the content {whose}"
        elif not is_located and all(
            _is_same(renderer, chat, index, {**message, "content": text}) for text in ("", "?")
        ):
            yield f"content of role {message['role']}"


def _keys(renderer: Renderer, chat: RenderedChat, printed: list[Printed]) -> Iterator[str]:
    """Keys besides role and content: those that marks show are printed, others are tried."""
    keys = dict.fromkeys(key for message in chat.messages for key in message if key not in USUAL)
    for key in keys:
        having = [index for index, message in enumerate(chat.messages) if message.get(key) not in (None, "", [], {})]
        hidden = [index for index in having if key not in printed[index].places]
        roles = {chat.messages[index]["role"] for index in having}
        if hidden and hidden == having and _is_lost(renderer, chat, having, key):
            without = [{name: value for name, value in message.items() if name != key} for message in chat.messages]
            is_earlier = any(_is_printed_at_the_end(renderer, chat, without, index) for index in having)
            yield f"{key} {OF_RESULTS}" if roles == {"tool"} else f"{key} {EARLIER}" if is_earlier else key
        elif len(having) > 1 and any(_is_lost(renderer, chat, [index], key) for index in hidden):
            yield f"{key} {EARLIER}" if chat.messages[having[0]]["role"] == "assistant" else f"{key} of some turns"


def _is_lost(renderer: Renderer, chat: RenderedChat, having: list[int], key: str) -> bool:
    """Whether the text is the same where messages lack a key, or have another text in it."""
    without, other = list(chat.messages), list(chat.messages)
    for index in having:
        message = chat.messages[index]
        without[index] = {name: value for name, value in message.items() if name != key}
        other[index] = {**message, key: "?"} if isinstance(message[key], str) else without[index]
    return any(_text(renderer, messages) == chat.text for messages in (without, other))


def _is_printed_at_the_end(renderer: Renderer, chat: RenderedChat, without: list[Message], index: int) -> bool:
    """Whether a key of an assistant turn is printed where the chat ends with that turn."""
    if chat.messages[index]["role"] != "assistant" or index == len(chat.messages) - 1:
        return False
    return _text(renderer, chat.messages[: index + 1]) != _text(renderer, without[: index + 1])


def _calls(renderer: Renderer, chat: RenderedChat) -> Iterator[str]:
    """Single calls of a turn that has several: some templates print the first only."""
    for index, message in enumerate(chat.messages):
        calls = message.get("tool_calls")
        if not isinstance(calls, list) or len(calls) < 2:
            continue
        for number in range(1, len(calls)):
            fewer = {**message, "tool_calls": [*calls[:number], *calls[number + 1 :]]}
            if _is_same(renderer, chat, index, fewer):
                yield "all tool_calls of a turn but the first"
                return


def _variables(renderer: Renderer, chat: RenderedChat) -> Iterator[str]:
    """Tools that change nothing, and switches that the template does not read."""
    known = read_variables(renderer.source)
    yield from (f"chat_template_kwargs.{name}" for name in chat.variables if name != "tools" and name not in known)
    others = {name: value for name, value in chat.variables.items() if name != "tools"}
    plain = Renderer(renderer.tokenizer, renderer.source, renderer.name, others)
    if "tools" in chat.variables and _text(plain, chat.messages) == chat.text:
        yield "tools"


def _is_same(renderer: Renderer, chat: RenderedChat, index: int, message: Message) -> bool:
    """Whether the text is the same with another message in the place of one."""
    return _text(renderer, [*chat.messages[:index], message, *chat.messages[index + 1 :]]) == chat.text


def _text(renderer: Renderer, messages: list[Message]) -> str | None:
    """The text of the messages; None if the template refuses them, and so depends on what is missing."""
    try:
        return renderer.text(messages)
    except BadRow:
        return None
