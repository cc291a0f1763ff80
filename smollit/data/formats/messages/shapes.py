"""Lists of messages in other shapes: written out as text, in columns, as exchanges; and turns out of order."""

import ast
import json
import re
from typing import Any

from smollit.data.formats.drop_reason import BadRow, DropReason
from smollit.data.formats.messages.roles import ALIASES
from smollit.data.formats.types import Message

# Keys of an exchange that is an object.
EXCHANGES = (
    *(("input", "output"), ("human", "assistant"), ("user", "assistant"), ("question", "answer")),
    *(("prompt", "response"), ("query", "response"), ("instruction", "output"), ("prompt", "completion")),
)
# A text that is a list of messages, in JSON as CSV files have it, or as Python prints it. "from" alone does not make
# one: a response may be a list of edges, [{"from": "a", "to": "b"}].
WRITTEN_MESSAGES = re.compile(
    r"""\s*\[\s*\{\s*(["'](role|content)["']\s*:|["']from["']\s*:\s*("[^"]*"|'[^']*')\s*,\s*["']value["']\s*:)"""
)
# The same of a single message: with a role of a chat, since a response may be an object.
WRITTEN_MESSAGE = re.compile(
    r"""\s*\{\s*["'](role|from)["']\s*:\s*["'](system|user|assistant|tool|human|gpt)["']\s*,\s*"""
    r"""["'](content|value)["']\s*:"""
)
# A string as Python prints it, or the place between two objects where NumPy prints no comma.
STRING_OR_GAP = re.compile(r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|\}\s+\{""", re.DOTALL)


def is_written(text: str) -> bool:
    """Whether a text is a list of messages, or one message."""
    return bool(WRITTEN_MESSAGES.match(text) or WRITTEN_MESSAGE.match(text))


def decode(text: str, where: str, reason: DropReason = DropReason.MALFORMED_MESSAGES) -> Any:
    """The value of a text in JSON, or as Python prints it."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        value = printed_by_python(text)
        if value is None:
            raise BadRow(reason, f"{where} is a text that is not JSON ({error})") from error
        return value
    except ValueError as error:  # an integer of more than 4,300 digits
        raise BadRow(reason, f"{where} holds a number that is too long") from error


def printed_by_python(text: str) -> Any:
    """The lists and objects that Python or NumPy printed, as pandas writes them into CSV files; None if it is none."""
    if text.lstrip()[:1] not in ("[", "{"):
        return None
    for written in (text.strip(), STRING_OR_GAP.sub(lambda found: found[1] or "}, {", text.strip())):
        try:
            return ast.literal_eval(written)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    return None


def from_columns(value: Any) -> Any:
    """The messages of {"role": [...], "content": [...]}, as `datasets` gives some lists of objects; else the value."""
    if not isinstance(value, dict) or not value or not all(isinstance(items, list) for items in value.values()):
        return value
    if len({len(items) for items in value.values()}) > 1 or not value.keys() & {"role", "from"}:
        return value
    return [dict(zip(value, items, strict=True)) for items in zip(*value.values(), strict=True)]


def from_exchanges(turns: list[Any]) -> list[Message]:
    """The messages of [[user, assistant], ...], [user, assistant, ...] or [{"input", "output"}, ...]; else none.

    Turns may also be objects whose one key is the role, [{"user": ...}, {"assistant": ...}].
    """
    first = turns[0]
    if all(isinstance(turn, dict) and len(turn) == 1 and ALIASES.keys() & turn for turn in turns):
        return [{"role": ALIASES[role], "content": text} for turn in turns for role, text in turn.items()]
    if isinstance(first, dict):
        keys = next((keys for keys in EXCHANGES if first.keys() >= set(keys)), None)
        return _from_objects(turns, *keys) if keys and all(_is_exchange(turn, *keys) for turn in turns) else []
    if len(turns) > 1 and all(isinstance(turn, str) for turn in turns):
        return [{"role": ("user", "assistant")[n % 2], "content": turn} for n, turn in enumerate(turns)]
    if not all(isinstance(turn, list) and len(turn) == 2 for turn in turns):
        return []
    said = [pair for turn in turns for pair in zip(("user", "assistant"), turn, strict=True)]
    if not all(content is None or isinstance(content, str) for _, content in said):
        return []
    return [{"role": role, "content": content} for role, content in said if content]


def _is_exchange(turn: Any, asked: str, said: str) -> bool:
    """Whether a turn is an object with a question or a response, and no message itself."""
    if not isinstance(turn, dict) or turn.keys() & {"role", "from", "content"}:
        return False
    texts = [turn.get(key) for key in ("system", "instruction", asked, said)]
    return (not turn or asked in turn or said in turn) and all(isinstance(text, str | None) for text in texts)


def _from_objects(turns: list[Message], asked: str, said: str) -> list[Message]:
    """The messages of exchanges: a `system` text once, and before the question its `instruction`, as in Alpaca.

    Other keys are kept with the last message, as the keys of messages are: they count in the loss, or are named.
    """
    read = ("system", "instruction", asked, said)
    messages: list[Message] = []
    for turn in turns:
        question = "\n\n".join(filter(str.strip, (turn.get(key) or "" for key in dict.fromkeys(read[1:3]))))
        texts = {"system": turn.get("system"), "user": question, "assistant": turn.get(said)}
        found: list[Message] = [{"role": role, "content": text} for role, text in texts.items() if text]
        if found:
            found[-1] |= {key: value for key, value in turn.items() if key not in read}
        messages += [message for message in found if message["role"] != "system" or message not in messages]
    return messages


def find_messages(value: Any) -> list[Message]:
    """The objects in a value of the first rows, whose format is not known yet, that may be messages; without nulls."""
    if isinstance(value, str) and is_written(value):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = printed_by_python(value)
    value = from_columns(value)
    found = value if isinstance(value, list) else [value]
    return [
        {key: item for key, item in message.items() if item is not None}
        for message in found
        if isinstance(message, dict)
    ]


def merge_odd_turns(messages: list[Message]) -> list[Message]:
    """The messages with turns of one role joined, in their order; a system text after the first turn is a user turn.

    Only messages that hold nothing but text are joined.
    """
    merged: list[Message] = []
    for message in messages:
        is_late = message["role"] == "system" and any(turn["role"] != "system" for turn in merged)
        is_text = message.keys() == {"role", "content"}
        _join(merged, message | {"role": "user"} if is_late and is_text else message)
    return merged


def _join(merged: list[Message], message: Message) -> None:
    """Add a message to the last one of its role, or after it."""
    before = merged[-1] if merged else {}
    can_join = before.keys() == message.keys() == {"role", "content"}
    if can_join and before["role"] == message["role"] != "tool":
        merged[-1] = before | {"content": f"{before['content']}\n\n{message['content']}"}
    else:
        merged.append(message)
