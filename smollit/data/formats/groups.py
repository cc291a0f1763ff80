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
        groups: dict[str, list[Row]] = {}
        thread = self.format.columns.get("thread")
        if self.format.name != "thread":
            keys: Iterable[str] = map(self._prompt, rows)
        elif thread is not None and "parent" not in self.format.columns:
            keys = (str(row.get(thread)) for row in rows)
        else:
            keys = self._roots(rows)
        for key, row in zip(keys, rows, strict=True):
            groups.setdefault(key, []).append(row)
        return ({GROUP: group} for group in groups.values())

    def _prompt(self, row: Row) -> str:
        fields = Fields(row, self.format.columns, self.format.roles)
        messages = fields.get("messages")
        asked = messages[:-1] if isinstance(messages, list) else fields.get("prompt")
        try:
            return json.dumps(drop_nulls([asked, fields.get("system")]), sort_keys=True, default=str)
        except (RecursionError, TypeError, BadRow):  # the row is refused when it is read
            return str(id(row))

    def _roots(self, rows: list[Row]) -> list[str]:
        """The first message above each row."""
        name, above = self.format.columns["id"], self.format.columns["parent"]
        parents = {id_of(row.get(name)): id_of(row.get(above)) for row in rows}
        roots: dict[str, str] = {}
        for key in parents:
            path = [key]
            while path[-1] not in roots and (parent := parents.get(path[-1], "")) and parent not in path:
                path.append(parent)
            roots |= dict.fromkeys(path, roots.get(path[-1], path[-1]))
        return [roots[id_of(row.get(name))] for row in rows]


def id_of(value: Any) -> str:
    """The id of a message as text; empty if it has none. Where some are missing, pandas writes 1.0 for 1."""
    text = "" if value is None else str(value)
    return "" if text.lower() == "nan" else re.sub(r"^(-?\d+)\.0$", r"\1", text)


def from_unpaired(rows: list[Row], format: Format) -> Records:
    """The pairs of the rated responses to one prompt, which stand in rows of their own."""
    if len(rows) < 2:
        raise BadRow(DropReason.NO_BETTER_RESPONSE, "the prompt has one response only")
    assert format.ranking is not None, "detect_format gives it"
    fields = [Fields(row, format.columns, format.roles) for row in rows]
    scores = [score for row in rows for score in format.ranking.scores(row, 1)]
    part = "messages" if "messages" in format.columns else "completion"
    names = [f"{format.columns[part]} {number} of the prompt" for number in range(1, len(rows) + 1)]
    prompt = [] if part == "messages" else prompt_turns(fields[0])
    values = [one.need(part) for one in fields]
    return rated_pairs(prompt, values, scores=scores, names=names, fields=fields[0], format=format)


def from_thread(rows: list[Row], format: Format) -> Records:
    """The chats of a thread, one for each last message, or the pairs of responses to the same message."""
    if "parent" not in format.columns:
        return [_in_order(rows, format)]
    thread = Thread(rows, format)
    return thread.chats() if format.kind == "chat" else thread.pairs()


def _in_order(rows: list[Row], format: Format) -> Conversation:
    """The chat of a thread whose messages stand in their order."""
    names = [f"message {number} of the thread" for number in range(len(rows))]
    messages = [_message(row, name, format) for row, name in zip(rows, names, strict=True)]
    if format.roles.odd_turns == "merge":
        messages = merge_odd_turns(messages)
    return make_conversation(messages, names[: len(messages)])


def _message(row: Row, where: str, format: Format) -> Message:
    role, text = (row.get(format.columns[part]) for part in ("role", "text"))
    return parse_message({"role": role, "content": text}, where, format.roles)


class Thread:
    """Messages, each below another: a tree, whose paths from the first message are chats.

    Args:
        rows: One message each.
        format: How they are read.
    """

    def __init__(self, rows: list[Row], format: Format) -> None:
        columns = format.columns
        self.format = format
        self.rows = {id_of(row.get(columns["id"])): row for row in rows}
        if len(self.rows) < len(rows) or "" in self.rows:
            ids = [id_of(row.get(columns["id"])) for row in rows]
            twice = next((name for name in ids if ids.count(name) > 1), "")
            what = f"two messages have the id {shown(twice)}" if twice else "a message has no id"
            raise BadRow(DropReason.MALFORMED_MESSAGES, f"{what}, in a thread of {len(rows):,}")
        self.above = {name: id_of(row.get(columns["parent"])) for name, row in self.rows.items()}
        self.below: dict[str, list[str]] = {}
        for name, above in self.above.items():
            self.below.setdefault(above, []).append(name)
        self.messages = {name: _message(row, f"message {shown(name)}", format) for name, row in self.rows.items()}

    def paths(self) -> Iterator[list[str]]:
        """The way to each message from the first one above it."""
        waiting = [[name] for name, above in self.above.items() if above not in self.rows]
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
            BadRow(DropReason.NO_ASSISTANT_TURN, f"no message below {shown(next(iter(self.rows)))} has that role")
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
        fields = Fields(self.rows[responses[0]], {}, self.format.roles)
        try:
            self._check_first(path[0])
            scores = [score for name in responses for score in ranking.scores(self.rows[name], 1)]
            names = [f"message {shown(name)}" for name in responses]
            return rated_pairs(prompt, values, scores=scores, names=names, fields=fields, format=self.format)
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
