"""Roles: the names of roles and of the keys of a message, as data sets write them."""

from dataclasses import dataclass
from typing import Any, Literal

from smollit.data.formats.drop_reason import BadRow, DropReason
from smollit.data.formats.types import Message, shown

ROLES = ("system", "user", "assistant", "tool")
# Names of the roles in ShareGPT and similar formats, in lower case.
ALIASES = {
    **dict.fromkeys(("human", "user", "prompter"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "gpt4", "gpt-4", "bard", "bing", "claude", "gemini"), "assistant"),
    **dict.fromkeys(("model", "bot", "chatbot", "ai", "function_call"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "function", "observation", "tool_response", "function_response", "ipython"), "tool"),
}
ROLE_KEYS = ("role", "from", "author", "speaker", "sender")
TEXT_KEYS = ("content", "value", "text", "message", "utterance", "parts")
OddTurns = Literal["drop", "merge", "error"]


@dataclass(frozen=True)
class Roles:
    """Which roles messages may have, and how they are written.

    Args:
        extra: Roles that the user lists besides system, user, assistant and tool.
        sharegpt: Whether the role may have another key than `role`, and the names of `ALIASES`, in any case.
        odd_turns: What happens to turns that follow their own kind, and to system messages after the first turn.
    """

    extra: tuple[str, ...] = ()
    sharegpt: bool = False
    odd_turns: OddTurns = "drop"

    def keys(self, message: Message) -> tuple[str, str]:
        """Names of the keys that hold the role and the content of a message without nulls."""
        role = next((key for key in ROLE_KEYS if key in message), "role") if self.sharegpt else "role"
        return role, next((key for key in TEXT_KEYS if key in message), "value" if role == "from" else "content")

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


def is_role(value: Any, extra: tuple[str, ...]) -> bool:
    """Whether a value is the name of a role, in whatever case."""
    return isinstance(value, str) and (value.strip().lower() in ALIASES or value in extra)


def is_sharegpt(message: Message, extra: tuple[str, ...]) -> bool:
    """Whether a message without nulls has another key for its role, or another name of it, as ShareGPT has."""
    role = message.get("role")
    if role is None:
        return any(isinstance(message.get(key), str) for key in ROLE_KEYS)
    known = isinstance(role, str) and role not in ROLES and role not in extra
    return known and role.strip().lower() in ALIASES
