"""Rows that belong together: the messages of a thread, and the rated responses to one prompt."""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from smollit.data.formats.drop_reason import BadRow, DropReason
from smollit.data.formats.format import Fields, Format
from smollit.data.formats.messages.parse import parse_message
from smollit.data.formats.messages.shapes import merge_odd_turns
from smollit.data.formats.pairs import prompt_turns, rated_pairs
from smollit.data.formats.types import Conversation, Message, Records, drop_nulls, make_conversation, shown
from smollit.data.sources.files import Row

GROUP = "rows"  # the one column of a group of rows


@dataclass(frozen=True)
class Groups:
    """Finds the rows that belong together, wherever they stand in the split.

    Args:
        format: How the rows are read.
    """

    format: Format

    @property
    def key(self) -> str:
        """What the groups depend on besides the rows."""
        convert = self.format.convert.key if self.format.convert else ""
        return f"{self.format.name} {sorted(self.format.columns.items())} {convert}"

    def __call__(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Rows of one column, which holds the rows of a group, in the order in which the groups begin."""
        rows = [one for row in rows for one in (self.format.convert(row) if self.format.convert else [row])]
        groups: dict[str | int, list[Row]] = {}
        for key, row in zip(self._keys(rows), rows, strict=True):
            groups.setdefault(key, []).append(row)
        return ({GROUP: group} for group in groups.values())

    def _keys(self, rows: list[Row]) -> Iterable[str | int]:
        """What the rows of a group have in common; a row without it is alone, and is refused when it is read."""
        fields = fields_of(rows, self.format)
        if self.format.name != "thread":
            return map(_prompt, fields)
        if "parent" in self.format.columns:
            return _roots(fields)
        return [id_of(one.get("thread")) or id(one.row) for one in fields]


def _prompt(fields: Fields) -> str | int:
    """The prompt of a rated response."""
    try:
        messages = fields.get("messages")
        asked = messages[:-1] if isinstance(messages, list) else fields.get("prompt")
        return json.dumps(drop_nulls([asked, fields.get("system")]), sort_keys=True, default=str)
    except (RecursionError, TypeError, BadRow):
        return id(fields.row)


def _roots(fields: list[Fields]) -> list[str | int]:
    """The first message above each."""
    ids = [id_of(one.get("id")) for one in fields]
    parents = dict(zip(ids, (id_of(one.get("parent")) for one in fields), strict=True))
    roots: dict[str, str] = {}
    for key in parents:
        path = [key]
        while path[-1] not in roots and (parent := parents.get(path[-1], "")) and parent not in path:
            path.append(parent)
        roots |= dict.fromkeys(path, roots.get(path[-1], path[-1]))
    return [roots[name] if name else id(one.row) for name, one in zip(ids, fields, strict=True)]


def fields_of(rows: list[Row], format: Format) -> list[Fields]:
    """Rows seen through their format."""
    return [Fields(row, format.columns, format.roles, format.late) for row in rows]


def id_of(value: Any) -> str:
    """The id of a message as text; empty if it has none. Where some are missing, pandas writes 1.0 for 1."""
    text = "" if value is None else str(value)
    return "" if text.lower() == "nan" else re.sub(r"^(-?\d+)\.0$", r"\1", text)


def from_unpaired(rows: list[Row], format: Format) -> Records:
    """The pairs of the rated responses to one prompt, which stand in rows of their own."""
    if len(rows) < 2:
        raise BadRow(DropReason.NO_BETTER_RESPONSE, "the prompt has one response only")
    assert format.ranking is not None, "detect_format gives it"
    fields = fields_of(rows, format)
    scores = [score for row in rows for score in format.ranking.scores(row, 1)]
    part = "messages" if "messages" in format.columns else "completion"
    names = [f"{format.columns[part]} {number} of the prompt" for number in range(1, len(rows) + 1)]
    prompt = [] if part == "messages" else prompt_turns(fields[0])
    values = [one.need(part) for one in fields]
    return rated_pairs(prompt, values, scores=scores, names=names, fields=fields[0], format=format)


def from_thread(rows: list[Row], format: Format) -> Records:
    """The chats of a thread, one for each last message, or the pairs of responses to the same message."""
    fields = fields_of(rows, format)
    if "parent" not in format.columns:
        return [_in_order(fields, format)]
    thread = Thread(fields, format)
    return thread.chats() if format.kind == "chat" else thread.pairs()


def _in_order(fields: list[Fields], format: Format) -> Conversation:
    """The chat of a thread whose messages stand in their order."""
    if not id_of(fields[0].get("thread")):
        raise BadRow(DropReason.MISSING_VALUE, f"a message has no `{format.columns['thread']}`, which names its thread")
    names = [f"message {number} of the thread" for number in range(len(fields))]
    messages = [_message(one, name) for one, name in zip(fields, names, strict=True)]
    if format.roles.odd_turns == "merge":
        messages = merge_odd_turns(messages)
    return make_conversation(messages, names[: len(messages)])


def _message(fields: Fields, where: str) -> Message:
    return parse_message({"role": fields.get("role"), "content": fields.get("text")}, where, fields.roles)


class Thread:
    """Messages, each below another: a tree, whose paths from the first message are chats.

    Args:
        fields: One message each.
        format: How they are read.
    """

    def __init__(self, fields: list[Fields], format: Format) -> None:
        self.format = format
        ids = [id_of(one.get("id")) for one in fields]
        self.fields = dict(zip(ids, fields, strict=True))
        if len(self.fields) < len(ids) or "" in ids:
            twice = next((name for name in ids if ids.count(name) > 1), "")
            what = f"two messages have the id {shown(twice)}" if twice else f"a message has no `{fields[0].name('id')}`"
            raise BadRow(DropReason.MALFORMED_MESSAGES, f"{what}, in a thread of {len(ids):,}")
        self.above = {name: id_of(one.get("parent")) for name, one in self.fields.items()}
        self.below: dict[str, list[str]] = {}
        for name, above in self.above.items():
            self.below.setdefault(above, []).append(name)
        self.messages = {name: _message(one, f"message {shown(name)}") for name, one in self.fields.items()}

    def paths(self) -> Iterator[list[str]]:
        """The way to each message from the first one above it."""
        waiting = [[name] for name, above in self.above.items() if above not in self.fields]
        while waiting:
            path = waiting.pop(0)
            yield path
            waiting += [[*path, name] for name in self.below.get(path[-1], [])]

    def chats(self) -> Records:
        """A chat for each assistant turn that no other assistant turn follows. Each turn counts in the loss once."""
        found: Records = []
        in_loss: set[str] = set()
        for path in self.paths():
            if self.messages[path[-1]]["role"] != "assistant" or self._goes_on(path[-1]):
                continue
            turns = [self.messages[name] | ({"train": False} if name in in_loss else {}) for name in path]
            in_loss |= {name for name in path if self.messages[name]["role"] == "assistant"}
            try:
                self._check_first(path[0])
                found.append(make_conversation(turns, [f"message {shown(name)}" for name in path]))
            except BadRow as bad:
                found.append(bad)
        return found or [
            BadRow(DropReason.NO_ASSISTANT_TURN, f"no message below {shown(next(iter(self.fields)))} has that role")
        ]

    def _check_first(self, name: str) -> None:
        """Refuse a thread that begins with a response to a message that the split lacks."""
        above = self.above[name]
        if above and self.messages[name]["role"] == "assistant":
            raise BadRow(
                DropReason.NO_PROMPT, f"message {shown(name)} responds to {shown(above)}, which the split does not have"
            )

    def pairs(self) -> Records:
        """The pairs of the assistant turns below the same message."""
        found: Records = []
        for path in self.paths():
            responses = [name for name in self.below.get(path[-1], []) if self.messages[name]["role"] == "assistant"]
            if len(responses) > 1:
                found += self._pairs_of(responses, path)
        return found or [BadRow(DropReason.NO_BETTER_RESPONSE, "no message of the thread has two responses")]

    def _pairs_of(self, responses: list[str], path: list[str]) -> Records:
        ranking, values = self.format.ranking, [[self.messages[name]] for name in responses]
        prompt = [self.messages[name] for name in path]
        assert ranking is not None, "detect_format gives it"
        try:
            self._check_first(path[0])
            scores = [score for name in responses for score in ranking.scores(self.fields[name].row, 1)]
            names = [f"message {shown(name)}" for name in responses]
            return rated_pairs(
                prompt, values, scores=scores, names=names, fields=self.fields[path[-1]], format=self.format
            )
        except BadRow as bad:
            return [bad]

    def _goes_on(self, name: str) -> bool:
        """Whether an assistant turn follows, at any distance."""
        waiting: list[Any] = [*self.below.get(name, [])]
        while waiting:
            one = waiting.pop()
            if self.messages[one]["role"] == "assistant":
                return True
            waiting += self.below.get(one, [])
        return False
