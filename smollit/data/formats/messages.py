"""Messages as data sets write them -> role and content as text: OpenAI's keys, ShareGPT's, JSON text in a CSV cell."""

import json
import re
from dataclasses import dataclass
from typing import Any

from smollit.data.formats.drop_reason import BadRow, DropReason
from smollit.data.formats.types import Message, shown

ROLES = ("system", "user", "assistant", "tool")
# What ShareGPT and its kin call the roles, in lower case.
ALIASES = {
    **dict.fromkeys(("human", "user", "prompter"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "gpt4", "gpt-4", "bard", "bing", "claude", "gemini"), "assistant"),
    **dict.fromkeys(("model", "bot", "chatbot", "ai", "function_call"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "function", "observation", "tool_response", "function_response", "ipython"), "tool"),
}
# A text that is a list of messages, in JSON as CSV files have it, or (an error) as Python prints it. "from" alone is
# no sign: an answer may be a list of edges, [{"from": "a", "to": "b"}].
WRITTEN_MESSAGES = re.compile(
    r"""\s*\[\s*\{\s*(["'](role|content)["']\s*:|["']from["']\s*:\s*("[^"]*"|'[^']*')\s*,\s*["']value["']\s*:)"""
)


@dataclass(frozen=True)
class Roles:
    """Which roles messages may have, and how they are written.

    Args:
        extra: Roles that the user lists besides system, user, assistant and tool.
        sharegpt: Whether keys may also be from/value, and roles the names of `ALIASES`, in any case.
    """

    extra: tuple[str, ...] = ()
    sharegpt: bool = False

    def keys(self, message: Message) -> tuple[str, str]:
        """Names of the keys that hold the role and the content of a message without nulls."""
        if not self.sharegpt:
            return "role", "content"
        return "from" if "role" not in message else "role", "value" if "content" not in message else "content"

    def read(self, role: Any, place: str) -> str:
        """One of the four roles, or an extra one."""
        if isinstance(role, str) and (role in ROLES or role in self.extra):
            return role
        known = ALIASES.get(role.strip().lower()) if isinstance(role, str) else None
        if self.sharegpt and known:
            return known
        expected = ", ".join((*ROLES, *self.extra))
        advice = "`data.format: sharegpt` reads it" if known else "`data.extra_roles` can list more"
        raise BadRow(DropReason.UNKNOWN_ROLE, f"{place} is {shown(role)}, expected one of {expected} ({advice})")


def parse_messages(value: Any, place: str, roles: Roles) -> list[Message]:
    """A list of messages, or its JSON text (as in CSV), with contents as plain text.

    Raises:
        BadRow: If it is no list, empty, or one of the messages is malformed.
    """
    if isinstance(value, str):
        value = decode(value, place)
    if not isinstance(value, list):
        raise BadRow(DropReason.MALFORMED_MESSAGES, f"{place} must be a list of messages, got {shown(value)}")
    if not value:
        raise BadRow(DropReason.EMPTY_CONVERSATION, f"{place} is an empty list")
    return [parse_message(message, f"{place}[{index}]", roles) for index, message in enumerate(value)]


def parse_turns(value: Any, role: str, place: str, roles: Roles) -> list[Message]:
    """Turns from a text (one turn of `role`), one message, or a list of messages."""
    if isinstance(value, str) and not WRITTEN_MESSAGES.match(value):
        return [{"role": role, "content": value}]
    if isinstance(value, dict):
        return [parse_message(value, place, roles)]
    return parse_messages(value, place, roles)


def decode(text: str, place: str) -> Any:
    """The value of a JSON text."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise BadRow(DropReason.MALFORMED_MESSAGES, f"{place} is a text that is not JSON ({error})") from error
    except ValueError as error:  # an integer of more than 4,300 digits
        raise BadRow(DropReason.MALFORMED_MESSAGES, f"{place} holds a number that is too long") from error


def parse_message(message: Any, place: str, roles: Roles) -> Message:
    """One message with a known role and its content as text; keys that are null are left out."""
    if not isinstance(message, dict):
        raise BadRow(DropReason.MALFORMED_MESSAGES, f"{place} must have `role` and `content`, got {shown(message)}")
    kept = {key: value for key, value in message.items() if value is not None}
    if "from" in kept and "role" not in kept and not roles.sharegpt:
        raise BadRow(DropReason.UNKNOWN_ROLE, f"{place} has no `role` but `from`: `data.format: sharegpt` reads it")
    role_key, content_key = roles.keys(kept)
    if role_key not in kept:
        have = ", ".join(sorted(map(shown, kept))[:8]) or "none"
        raise BadRow(DropReason.UNKNOWN_ROLE, f"{place}.{role_key} is null or missing (keys: {have})")
    role = roles.read(kept[role_key], f"{place}.{role_key}")
    content = parse_content(kept.get(content_key), f"{place}.{content_key}", kept)
    other = {key: value for key, value in kept.items() if key not in ("train", "weight", role_key, content_key)}
    return {"role": role, "content": content, **other, **parse_train(kept, place)}


def parse_content(content: Any, place: str, message: Message) -> str:
    """A text, or the joined texts of a list of text parts; nothing beside tool calls is the empty text."""
    if content is None:
        if message.get("tool_calls"):
            return ""
        raise BadRow(DropReason.NULL_CONTENT, f"{place} is null or missing")
    if isinstance(content, list):
        return "".join(_part_text(part, f"{place}[{index}]") for index, part in enumerate(content))
    return parse_text(content, place)


def parse_text(value: Any, place: str) -> str:
    """The value, which must be a text."""
    if not isinstance(value, str):
        raise BadRow(DropReason.NOT_TEXT, f"{place} must be text, got {shown(value)}")
    return value


def parse_train(message: Message, place: str) -> dict[str, bool]:
    """{"train": whether the row wants the message trained}, from `train` or OpenAI's `weight`; empty if it has none.

    A weight of 0 takes a message out; a weight of 1 is what every message has, and asks for nothing.
    """
    said = {key: message[key] for key in ("train", "weight") if key in message}
    for key, value in said.items():
        if not isinstance(value, (bool, int, float)) or value not in (0, 1):
            raise BadRow(DropReason.MALFORMED_WEIGHT, f"{place}.{key} must be true, false, 1 or 0, got {shown(value)}")
    wanted = {bool(value) for value in said.values()}
    if len(wanted) > 1:
        raise BadRow(DropReason.MALFORMED_WEIGHT, f"{place}.train and {place}.weight disagree")
    return {"train": wanted.pop()} if "train" in said or wanted == {False} else {}


def find_messages(value: Any) -> list[Message]:
    """The objects that look like messages in a value of the first rows, of which nothing is known yet."""
    if isinstance(value, str) and WRITTEN_MESSAGES.match(value):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return []
    found = value if isinstance(value, list) else [value]
    return [
        {key: item for key, item in message.items() if item is not None}
        for message in found
        if isinstance(message, dict)
    ]


def is_sharegpt(message: Message, extra: tuple[str, ...]) -> bool:
    """Whether a message without nulls has ShareGPT's keys, or one of its names of roles."""
    role = message.get("role")
    if role is None:
        return isinstance(message.get("from"), str)
    known = isinstance(role, str) and role not in ROLES and role not in extra
    return known and role.strip().lower() in ALIASES


def _part_text(part: Any, place: str) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return part["text"]
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    raise BadRow(DropReason.NOT_TEXT, f"{place} is a part of type {shown(kind)}, and only text parts can be trained")
