"""Messages as the template reads them: reasoning and calls that are written into texts get keys of their own.

Data sets write the same turn in several ways, and a template prints one of them well. Rendering decides which.
"""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from smollit.data.formats.drop_reason import BadRow
from smollit.data.formats.types import Message
from smollit.data.template.rendering.renderer import Renderer

OPENS, CLOSES = "<think>", "</think>"  # around reasoning that is written into the content
REASONING = ("reasoning_content", "reasoning", "thinking")  # keys of messages: transformers reads them as one
READS = re.compile("|".join((CLOSES, *REASONING)))  # in the source of a template that does more than print contents
CALL_KEYS = ({"name", "arguments"}, {"name", "parameters"})


def as_read(renderer: Renderer, messages: list[Message], given: dict[int, int]) -> list[Message]:
    """The messages, of which some assistant turns are rewritten.

    - `<think>R</think>A` becomes reasoning and content, where the template prints the same text for these.
    - Arguments of calls that are JSON text become objects, or objects text, where the template fails on them, or prints
      a text within quotes.
    - A text that is the JSON of a call of one of the row's tools becomes a call, where the template prints calls.

    Args:
        renderer: The renderer of the chat, with its variables.
        messages: The messages.
        given: Indices of turns that continue another one, which stay as they are.
    """
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant" and index not in given]
    if READS.search(renderer.source) and any(CLOSES in messages[index]["content"] for index in turns):
        messages = _with_reasoning(renderer, messages, turns)
    if names := _tool_names(renderer.variables.get("tools")):
        messages = _with_calls(renderer, messages, turns, names)
    if any("tool_calls" in messages[index] for index in turns):
        messages = _with_arguments(renderer, messages)
    return messages


def _with_reasoning(renderer: Renderer, messages: list[Message], turns: list[int]) -> list[Message]:
    text = _text(renderer, messages)
    if text is None:
        return messages
    split = {index: found for index in turns if (found := _split_reasoning(messages[index]))}
    for every in zip(*split.values(), strict=True):
        tried = [dict(zip(split, every, strict=True)).get(index, message) for index, message in enumerate(messages)]
        if _text(renderer, tried) == text:
            return tried
    for index, found in split.items() if len(split) > 1 else ():  # the template may read earlier turns only
        tries = (_replaced(messages, index, message) for message in found)
        messages = next((tried for tried in tries if _text(renderer, tried) == text), messages)
    return messages


def _split_reasoning(message: Message) -> tuple[Message, ...]:
    """The turn with its reasoning in a key of its own; none if it holds none, or has the key already.

    A template may strip the whitespace of the content, print it, or write a line end before it: so there are several.
    """
    before, closes, after = message["content"].partition(CLOSES)
    if not closes or any(message.get(key) for key in REASONING):
        return ()
    reasoning = before.strip().removeprefix(OPENS).strip("\n")
    found = {"reasoning_content": reasoning} if reasoning.strip() else {}
    contents = (after.lstrip("\n"), after, after.removeprefix("\n"), after.strip())
    return tuple({**message, "content": content, **found} for content in contents)


def _with_calls(renderer: Renderer, messages: list[Message], turns: list[int], names: set[str]) -> list[Message]:
    for index in turns:
        calls = [] if messages[index].get("tool_calls") else list(_calls_in(messages[index]["content"], names))
        if not calls:
            continue
        empty = _replaced(messages, index, {**messages[index], "content": ""})
        tried = _replaced(messages, index, {**messages[index], "content": "", "tool_calls": calls})
        text = _text(renderer, tried)
        if text is not None and text != _text(renderer, empty):
            messages = tried
    return messages


def _calls_in(content: str, names: set[str]) -> Iterator[dict[str, Any]]:
    """The calls that a text consists of, as ShareGPT's `function_call` has them; none if it is something else."""
    if content.lstrip()[:1] not in ("{", "["):
        return
    value = _decoded(content)
    calls = value if isinstance(value, list) else [value]
    if not all(isinstance(call, dict) and call.keys() in CALL_KEYS and str(call["name"]) in names for call in calls):
        return
    for call in calls:
        arguments = call.get("arguments", call.get("parameters"))
        yield {"type": "function", "function": {"name": call["name"], "arguments": arguments}}


def _tool_names(tools: Any) -> set[str]:
    named = [tool.get("function", tool) for tool in tools or [] if isinstance(tool, dict)]
    return {tool["name"] for tool in named if isinstance(tool, dict) and isinstance(tool.get("name"), str)}


def _with_arguments(renderer: Renderer, messages: list[Message]) -> list[Message]:
    for change in (_as_it_is, _as_object, _as_text):
        tried = [_changed_calls(message, change) for message in messages]
        text = _text(renderer, tried)
        if text is not None and not any(_is_quoted(value, text) for value in _arguments(tried)):
            return tried
    return messages


def _changed_calls(message: Message, change: Callable[[Any], Any]) -> Message:
    """The message with the arguments of its calls changed."""
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return message
    return {**message, "tool_calls": [_changed_call(call, change) for call in calls]}


def _changed_call(call: Any, change: Callable[[Any], Any]) -> Any:
    if not isinstance(call, dict):
        return call
    if "function" in call:
        return {**call, "function": _changed_call(call["function"], change)}
    return {**call, "arguments": change(call["arguments"])} if "arguments" in call else call


def _arguments(messages: list[Message]) -> Iterator[Any]:
    """The arguments of all calls."""
    found: list[Any] = []
    for message in messages:
        _changed_calls(message, found.append)
    return iter(found)


def _is_quoted(value: Any, text: str) -> bool:
    """Whether arguments that are a JSON object are printed as a text within quotes."""
    if not isinstance(value, str) or not isinstance(_decoded(value), dict):
        return False
    return json.dumps(value, ensure_ascii=False) in text or json.dumps(value) in text


def _as_it_is(value: Any) -> Any:
    return value


def _as_object(value: Any) -> Any:
    decoded = _decoded(value) if isinstance(value, str) else None
    return decoded if isinstance(decoded, dict) else value


def _as_text(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else value


def _decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _replaced(messages: list[Message], index: int, message: Message) -> list[Message]:
    return [*messages[:index], message, *messages[index + 1 :]]


def _text(renderer: Renderer, messages: list[Message]) -> str | None:
    """The text of the messages; None if the template fails on them."""
    try:
        return renderer.text(messages)
    except BadRow:
        return None
