"""Conversation, Preference and Text: the records of rows, and the invariants of their turns."""

from dataclasses import dataclass, field
from typing import Any, Literal

from smollit.data.formats.drop_reason import BadRow, DropReason

Kind = Literal["chat", "preference"]
Message = dict[str, Any]  # role, content (a text), `train` if the row has it, and its other keys that are not null
Variables = dict[str, Any]  # what a row gives the chat template besides its messages: `tools`, switches
SHORT = 40  # characters of a value that errors show


@dataclass(frozen=True)
class Conversation:
    """A chat with at least one turn of an assistant, or of a role that the user listed.

    Two assistant turns follow each other only where the second continues the first: a prompt that ends with the start
    of a turn, and its completion.
    """

    messages: list[Message]
    variables: Variables = field(default_factory=dict)


@dataclass(frozen=True)
class Preference:
    """A prompt and two responses, of which the first is preferred.

    The responses continue the prompt's last turn if that is an assistant turn. `score_gap` is the score of the chosen
    response minus that of the rejected one; None without scores.
    """

    prompt: list[Message]
    chosen: Message
    rejected: Message
    score_gap: float | None = None
    variables: Variables = field(default_factory=dict)


@dataclass(frozen=True)
class Text:
    """Plain text: every token is a loss token, and no chat template is used."""

    text: str


Record = Conversation | Preference | Text
Records = list[Record | BadRow]  # of one row: those that can be used, and why the others can't


def make_conversation(messages: list[Message], where: list[str], continued: int | None = None) -> Conversation:
    """A chat, after a check that its turns are in order and its assistant turns hold text.

    Args:
        messages: Parsed messages.
        where: Where in the row each of them is, such as "messages[1]".
        continued: Index of the turn that may continue the assistant turn before it.

    Raises:
        BadRow: If the order is odd, an assistant turn is empty, or there is none.
    """
    check_order(messages, where, continued)
    for message, name in zip(messages, where, strict=True):
        check_not_empty(message, name)
    if all(message["role"] in ("system", "user", "tool") for message in messages):
        raise BadRow(DropReason.NO_ASSISTANT_TURN, f"no message with role 'assistant' from {where[0]} to {where[-1]}")
    return Conversation(messages)


def check_order(messages: list[Message], where: list[str], continued: int | None = None) -> None:
    """The system message comes first; user and assistant turns do not follow their own kind."""
    for index, (message, name) in enumerate(zip(messages, where, strict=True)):
        role = message["role"]
        if role == "system" and index > 0:
            raise BadRow(DropReason.ROLE_ORDER, f"{name} is a system message, but not the first")
        same = index > 0 and role in ("user", "assistant") and role == messages[index - 1]["role"]
        if same and not (role == "assistant" and index == continued):
            raise BadRow(DropReason.ROLE_ORDER, f"{where[index - 1]} and {name} are both {role} turns")


def check_not_empty(message: Message, where: str) -> None:
    """An assistant turn has a text, or calls tools."""
    if message["role"] == "assistant" and not message["content"].strip() and not message.get("tool_calls"):
        raise BadRow(DropReason.EMPTY_RESPONSE, f"{where} has no text, {message['content']!r:.20}")


def drop_nulls(value: Any) -> Any:
    """The value without keys that are null, at any depth."""
    if isinstance(value, dict):
        return {key: drop_nulls(item) for key, item in value.items() if item is not None}
    return [drop_nulls(item) for item in value] if isinstance(value, list) else value


def shown(value: Any) -> str:
    """A value in a few characters, whatever it is; of lists and objects (which may be deeply nested) only the type."""
    if isinstance(value, str):
        return repr(value[:SHORT]) + ("..." if len(value) > SHORT else "")
    is_small = isinstance(value, int) and abs(value) < 10**SHORT  # Python refuses to print integers of 4,301 digits
    return repr(value) if value is None or is_small or isinstance(value, float) else type(value).__name__
