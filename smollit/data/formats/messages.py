"""Messages as data sets write them -> role and content as text.

Messages have OpenAI's keys or ShareGPT's, and may be written out in a CSV cell, in JSON or as Python prints them. A
list of exchanges, [[user, assistant], ...], is a list of messages too.
"""

import ast
import json
import re
from dataclasses import dataclass
from typing import Any, Literal

from smollit.data.formats.drop_reason import BadRow, DropReason
from smollit.data.formats.types import Message, shown

ROLES = ("system", "user", "assistant", "tool")
PLAIN = {"role", "content"}  # the keys of a message that is no more than a text
# Names of the roles in ShareGPT and similar formats, in lower case.
ALIASES = {
    **dict.fromkeys(("human", "user", "prompter"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "gpt4", "gpt-4", "bard", "bing", "claude", "gemini"), "assistant"),
    **dict.fromkeys(("model", "bot", "chatbot", "ai", "function_call"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "function", "observation", "tool_response", "function_response", "ipython"), "tool"),
}
EXCHANGES = (
    ("input", "output"),
    ("human", "assistant"),
    ("user", "assistant"),
)  # keys of an exchange that is an object
OddTurns = Literal["drop", "merge", "error"]
# A text that is a list of messages, in JSON as CSV files have it, or as Python prints it. "from" alone does not make
# one: a response may be a list of edges, [{"from": "a", "to": "b"}].
WRITTEN_MESSAGES = re.compile(
    r"""\s*\[\s*\{\s*(["'](role|content)["']\s*:|["']from["']\s*:\s*("[^"]*"|'[^']*')\s*,\s*["']value["']\s*:)"""
)
DIALOGUE = re.compile(r"\s*(Human|Assistant):")
# A name begins a turn at the start of the text or after an empty line: "he said, Human: ..." does not.
DIALOGUE_TURN = re.compile(r"(?:\A\s*|\r?\n\r?\n)(Human|Assistant):")


@dataclass(frozen=True)
class Roles:
    """Which roles messages may have, and how they are written.

    Args:
        extra: Roles that the user lists besides system, user, assistant and tool.
        sharegpt: Whether keys may also be from/value, and roles the names of `ALIASES`, in any case.
        odd_turns: What happens to turns that follow their own kind, and to system messages after the first turn.
    """

    extra: tuple[str, ...] = ()
    sharegpt: bool = False
    odd_turns: OddTurns = "drop"

    def keys(self, message: Message) -> tuple[str, str]:
        """Names of the keys that hold the role and the content of a message without nulls."""
        if not self.sharegpt:
            return "role", "content"
        return "from" if "role" not in message else "role", "value" if "content" not in message else "content"

    def read(self, role: Any, where: str) -> str:
        """One of the four roles, or an extra one."""
        if isinstance(role, str) and (role in ROLES or role in self.extra):
            return role
        known = ALIASES.get(role.strip().lower()) if isinstance(role, str) else None
        if self.sharegpt and known:
            return known
        expected = ", ".join((*ROLES, *self.extra))
        advice = "`data.format: sharegpt` reads it" if known else "`data.extra_roles` can list more"
        raise BadRow(DropReason.UNKNOWN_ROLE, f"{where} is {shown(role)}, expected one of {expected} ({advice})")


def parse_messages(value: Any, where: str, roles: Roles) -> list[Message]:
    """A list of messages, or its text (as in CSV), with contents as plain text.

    Raises:
        BadRow: If it is no list, empty, or one of the messages is malformed.
    """
    if isinstance(value, str):
        value = decode(value, where)
    value = from_columns(value)
    if not isinstance(value, list):
        raise BadRow(DropReason.MALFORMED_MESSAGES, f"{where} must be a list of messages, got {shown(value)}")
    if not value:
        raise BadRow(DropReason.EMPTY_CONVERSATION, f"{where} is an empty list")
    value = from_exchanges(value) or value
    messages = [parse_message(message, f"{where}[{index}]", roles) for index, message in enumerate(value)]
    return merge_odd_turns(messages) if roles.odd_turns == "merge" else messages


def from_columns(value: Any) -> Any:
    """The messages of {"role": [...], "content": [...]}, as `datasets` gives some lists of objects; else the value."""
    if not isinstance(value, dict) or not value or not all(isinstance(items, list) for items in value.values()):
        return value
    if len({len(items) for items in value.values()}) > 1 or not value.keys() & {"role", "from"}:
        return value
    return [dict(zip(value, items, strict=True)) for items in zip(*value.values(), strict=True)]


def from_exchanges(turns: list[Any]) -> list[Message]:
    """The messages of [[user, assistant], ...], [user, assistant, ...] or [{"input", "output"}, ...]; else none."""
    first = turns[0]
    if isinstance(first, dict):
        if "role" in first or "from" in first:
            return []
        keys = next((keys for keys in EXCHANGES if first.keys() >= set(keys)), None)
        if keys is None or not all(isinstance(turn, dict) for turn in turns):
            return []
        turns = [[turn.get(key) for key in keys] for turn in turns]
    if len(turns) > 1 and all(isinstance(turn, str) for turn in turns):
        return [{"role": ("user", "assistant")[n % 2], "content": turn} for n, turn in enumerate(turns)]
    if not all(isinstance(turn, list) and len(turn) == 2 for turn in turns):
        return []
    said = [pair for turn in turns for pair in zip(("user", "assistant"), turn, strict=True)]
    if not all(content is None or isinstance(content, str) for _, content in said):
        return []
    return [{"role": role, "content": content} for role, content in said if content]


def merge_odd_turns(messages: list[Message]) -> list[Message]:
    """The messages with turns of one role joined, and a system text after the first turn put before the next one.

    Only messages that hold nothing but text are joined.
    """
    merged: list[Message] = []
    waiting: list[str] = []  # texts of system messages that come late
    for message in messages:
        is_late = message["role"] == "system" and any(turn["role"] != "system" for turn in merged)
        if is_late and message.keys() == {"role", "content"}:
            waiting.append(message["content"])
            continue
        if waiting and message["role"] == "user":
            message = message | {"content": "\n\n".join([*waiting, message["content"]])}
            waiting = []
        before = merged[-1] if merged else {}
        can_join = before.keys() == message.keys() == {"role", "content"}
        if can_join and before["role"] == message["role"] != "tool":
            merged[-1] = before | {"content": f"{before['content']}\n\n{message['content']}"}
        else:
            merged.append(message)
    return [*merged, *({"role": "system", "content": text} for text in waiting)]


def parse_turns(value: Any, role: str, where: str, roles: Roles) -> list[Message]:
    """Turns from a text (one turn of `role`), one message, or a list of messages."""
    if isinstance(value, str) and not WRITTEN_MESSAGES.match(value):
        return [{"role": role, "content": value}]
    value = from_columns(value)
    if isinstance(value, dict):
        return [parse_message(value, where, roles)]
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        raise BadRow(
            DropReason.MALFORMED_MESSAGES,
            f"{where} is a list of {len(value)} texts: `data.columns` can take one ({where}.0), or make pairs of them"
            " as `responses` with `chosen_if`",
        )
    return parse_messages(value, where, roles)


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
    """The list that Python printed, as pandas writes lists into CSV files; None if the text is none."""
    try:
        return ast.literal_eval(text.strip()) if WRITTEN_MESSAGES.match(text) else None
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def parse_message(message: Any, where: str, roles: Roles) -> Message:
    """One message with a known role and its content as text; keys that are null are left out."""
    if not isinstance(message, dict):
        raise BadRow(DropReason.MALFORMED_MESSAGES, f"{where} must have `role` and `content`, got {shown(message)}")
    kept = {key: value for key, value in message.items() if value is not None}
    if "from" in kept and "role" not in kept and not roles.sharegpt:
        raise BadRow(DropReason.UNKNOWN_ROLE, f"{where} has no `role` but `from`: `data.format: sharegpt` reads it")
    if kept.keys() == PLAIN and kept["role"] in ROLES and isinstance(kept["content"], str):
        return kept  # as most messages are
    role_key, content_key = roles.keys(kept)
    if role_key not in kept:
        have = ", ".join(sorted(map(shown, kept))[:8]) or "none"
        raise BadRow(DropReason.UNKNOWN_ROLE, f"{where}.{role_key} is null or missing (keys: {have})")
    if isinstance(kept.get("function_call"), dict):  # OpenAI's name for a single tool call, until 2023
        kept |= {"tool_calls": [{"type": "function", "function": kept.pop("function_call")}]}
    role = roles.read(kept[role_key], f"{where}.{role_key}")
    if content_key not in kept and isinstance(kept.get("text"), str):
        content_key = "text"
    content = parse_content(kept.get(content_key), f"{where}.{content_key}", kept)
    other = {key: value for key, value in kept.items() if key not in ("train", "weight", role_key, content_key)}
    return {"role": role, "content": content, **other, **parse_train(kept, where)}


def parse_content(content: Any, where: str, message: Message) -> str:
    """A text, or the joined texts of a list of text parts; null beside tool calls is the empty text."""
    if content is None:
        if message.get("tool_calls"):
            return ""
        raise BadRow(DropReason.NULL_CONTENT, f"{where} is null or missing")
    if isinstance(content, list):
        return "".join(_part_text(part, f"{where}[{index}]") for index, part in enumerate(content))
    return parse_text(content, where)


def parse_text(value: Any, where: str) -> str:
    """The value, which must be a text."""
    if not isinstance(value, str):
        raise BadRow(DropReason.NOT_TEXT, f"{where} must be text, got {shown(value)}")
    return value


def parse_train(message: Message, where: str) -> dict[str, bool]:
    """{"train": whether the message has loss tokens}, from `train` or OpenAI's `weight`; empty if the row has neither.

    A weight of 0 takes a message out of the loss; a weight of 1 is the default, and changes nothing.
    """
    said = {key: message[key] for key in ("train", "weight") if key in message}
    for key, value in said.items():
        if not isinstance(value, (bool, int, float)) or value not in (0, 1):
            raise BadRow(DropReason.MALFORMED_WEIGHT, f"{where}.{key} must be true, false, 1 or 0, got {shown(value)}")
    wanted = {bool(value) for value in said.values()}
    if len(wanted) > 1:
        raise BadRow(DropReason.MALFORMED_WEIGHT, f"{where}.train and {where}.weight disagree")
    return {"train": wanted.pop()} if "train" in said or wanted == {False} else {}


# ---- helpers


def _part_text(part: Any, where: str) -> str:
    if isinstance(part, dict) and part.get("type") == "text":
        text = part.get("text", part.get("value"))
        if isinstance(text, str):
            return text
        have = ", ".join(sorted(map(shown, part)))
        raise BadRow(DropReason.NOT_TEXT, f"{where} is a part of type 'text' without a `text` (keys: {have})")
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    raise BadRow(DropReason.NOT_TEXT, f"{where} is a part of type {shown(kind)}, and only text parts are supported")
