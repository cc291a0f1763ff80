"""The messages that count in the loss: `data.train_on`, what a row says itself, and turns that continue others."""

from functools import lru_cache

from smollit.data.formats.drop_reason import BadRow, DropReason
from smollit.data.formats.types import Message

TrainOn = str | tuple[str, ...]
ALL = "all"  # every token of the text: parts.py
PARTS = ("reasoning", "content", "tool_calls")  # of assistant turns: parts.py


def join_continued(messages: list[Message]) -> tuple[list[Message], dict[int, int]]:
    """Join assistant turns to those that they continue; by index, the number of characters of the first of them."""
    joined: list[Message] = []
    given: dict[int, int] = {}
    for message in messages:
        if not joined or message["role"] != "assistant" or joined[-1]["role"] != "assistant":
            joined.append(message)
            continue
        before = {key: value for key, value in joined[-1].items() if key != "train"}
        given[len(joined) - 1] = len(before["content"])
        joined[-1] = {**before, **message, "content": before["content"] + message["content"]}
    return joined, given


def messages_with_loss(messages: list[Message], train_on: TrainOn) -> list[int]:
    """Indices of the messages that count in the loss; a message's own `train` overrides `train_on`.

    Args:
        messages: The messages, with assistant turns that follow each other joined.
        train_on: `assistant` (all its turns), `last` (its last turn), `all`, or roles, or parts of assistant turns.

    Raises:
        BadRow: If there are none.
    """
    roles = roles_with_loss(train_on)
    found = [index for index, message in enumerate(messages) if message["role"] in roles or train_on == ALL]
    found = found[-1:] if train_on == "last" else found
    wanted = [index for index, message in enumerate(messages) if message.get("train", index in found)]
    if not wanted:
        raise BadRow(DropReason.NO_LOSS_TOKENS, f"no message counts in the loss: `data.train_on` is {train_on!r}")
    return wanted


def through_last_loss(messages: list[Message], train_on: TrainOn) -> list[Message]:
    """The messages through the last one that counts in the loss.

    What follows is not used, and templates of reasoning models would print the turns before it in another way than
    inference does, which ends there.

    Raises:
        BadRow: If none counts.
    """
    end = messages[-1]
    if train_on == ALL or (end["role"] in roles_with_loss(train_on) and "train" not in end):
        return messages
    return messages[: messages_with_loss(messages, train_on)[-1] + 1]


@lru_cache
def roles_with_loss(train_on: TrainOn) -> frozenset[str]:
    """The roles that `train_on` names, or whose turns it names parts of."""
    named = {train_on} if isinstance(train_on, str) else set(train_on)
    return frozenset(named | {"assistant"} if named & {"last", *PARTS} else named)
