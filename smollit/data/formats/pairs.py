"""Rows -> Preference: pairs that the row holds, and pairs that are made of several rated responses."""

from itertools import product
from typing import Any

from smollit.data.formats.drop_reason import BadRow, DropReason
from smollit.data.formats.format import Fields, Format
from smollit.data.formats.messages.dialogue import is_open_dialogue, parse_dialogue_prompt
from smollit.data.formats.messages.parse import parse_messages, parse_turns
from smollit.data.formats.messages.shapes import find_messages
from smollit.data.formats.ranking import ordered_pairs, parse_score
from smollit.data.formats.types import Message, Preference, Records, check_not_empty, check_order, shown
from smollit.data.sources.columns import LIST, decoded_cell, value_at


def from_preference(fields: Fields) -> Records:
    """The pair in `chosen` and `rejected`: texts, messages, or whole conversations that repeat the prompt.

    Where one of them is a list of texts, each of these is a response, and there are several pairs.
    """
    prompt = prompt_turns(fields)
    pairs: Records = []
    responses = [_responses(fields, part, other) for part, other in (("chosen", "rejected"), ("rejected", "chosen"))]
    for (name, chosen), (other, rejected) in product(*responses):
        try:
            pairs.append(make_pair(prompt, (chosen, rejected), (name, other), fields))
        except BadRow as bad:
            pairs.append(bad)
    return pairs


def _responses(fields: Fields, part: str, other: str) -> list[tuple[str, list[Message]]]:
    """The responses of a part, each with its place in the row; of two lists of texts, none."""
    value, name = fields.need(part), fields.name(part)
    if _are_texts(value) and not _are_texts(fields.get(other)):
        return [
            (f"{name}[{n}]", parse_turns(item, "assistant", f"{name}[{n}]", fields.roles))
            for n, item in enumerate(value)
        ]
    return [(name, fields.turns(part, "assistant"))]


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 1 and all(isinstance(item, str) for item in value)


def from_ranked(fields: Fields, format: Format) -> Records:
    """The pairs of the several responses of a row: a list in one column, or columns of their own."""
    assert format.ranking is not None, "detect_format gives it"
    name = fields.name("responses")
    named = name.split(LIST)
    values = [value_at(fields.row, column.strip()) for column in named]
    if len(named) == 1:
        value = decoded_cell(values[0])
        values = value if isinstance(value, list) else []
        named = [f"{name}[{index}]" for index in range(len(values))]
    if len(values) < 2:
        raise BadRow(DropReason.NO_BETTER_RESPONSE, f"`{name}` has fewer than two responses")
    scores = format.ranking.scores(fields.row, len(values))
    return rated_pairs(prompt_turns(fields), values, scores=scores, names=named, fields=fields, format=format)


def rated_pairs(
    prompt: list[Message],
    values: list[Any],
    *,
    scores: list[float | None],
    names: list[str],
    fields: Fields,
    format: Format,
) -> Records:
    """The pairs of responses with scores. A pair that can't be used does not take the others with it."""
    pairs: Records = []
    for chosen, rejected in ordered_pairs(scores, format.pairs_of):
        gap = (scores[chosen] or 0.0) - (scores[rejected] or 0.0)
        try:
            both = [parse_turns(values[n], "assistant", names[n], fields.roles) for n in (chosen, rejected)]
            pairs.append(make_pair(prompt, (both[0], both[1]), (names[chosen], names[rejected]), fields, gap=gap))
        except BadRow as bad:
            pairs.append(bad)
    return pairs


# ---- one pair


def make_pair(
    prompt: list[Message],
    responses: tuple[list[Message], list[Message]],
    names: tuple[str, str],
    fields: Fields,
    *,
    gap: float | None = None,
) -> Preference:
    """A pair; a prompt that the responses repeat must be the same everywhere, and is removed from them.

    Whitespace around a text makes no difference. A response that comes alone responds to the prompt of the other one.

    Args:
        prompt: The turns of the prompt's column; empty if the responses alone have them.
        responses: The turns of the chosen and of the rejected one.
        names: Where these are in the row.
        fields: The row.
        gap: The score of the chosen response minus that of the rejected one; without it, the columns of scores say it.
    """
    for turns, name in zip(responses, names, strict=True):
        check_ends_with_assistant(turns, name)
    asked, repeated, other = map(_without_system, (prompt, responses[0][:-1], responses[1][:-1]))
    differ = ""
    if repeated and other and _stripped(repeated) != _stripped(other):
        differ = f"the turns before the response are not the same in {names[0]} and {names[1]}"
    elif repeated and other and _is_continued(asked, repeated):
        asked = [*asked, *repeated]
    elif asked and (repeated or other) and not _is_part_of(_stripped(asked), _stripped(repeated or other)):
        differ = f"`{fields.name('prompt')}` is not what {names[0]} and {names[1]} begin with"
    if differ:
        raise BadRow(DropReason.PROMPTS_DIFFER, differ)
    turns = max(repeated or other, asked, key=len)
    system = _the_system([prompt, *responses], fields)
    if not turns and not system:
        raise BadRow(
            DropReason.NO_PROMPT,
            f"there is no `{fields.name('prompt')}`, and `{names[0]}` has no turns before the response",
        )
    where = indexed(names[0] if repeated or other else fields.name("prompt"), turns, first=len(system))
    prompt = [*system, *turns]
    where = ["the system text"] * len(system) + where
    chosen, rejected = responses[0][-1], responses[1][-1]
    check_order([*prompt, chosen], [*where, names[0]], continued=len(prompt))
    return Preference(prompt, chosen, rejected, _score_gap(fields) if gap is None else gap)


def prompt_turns(fields: Fields) -> list[Message]:
    """The turns of `history` and `prompt`, the last one after the text, or the turns, of `context`; of no value, none.

    A text is one user turn, or a dialogue whose last turn is left open.
    """
    value, name = fields.get("prompt"), fields.name("prompt")
    if value is None or value == [] or (isinstance(value, str) and not value.strip()):
        return []
    turns = parse_dialogue_prompt(value, name) if is_open_dialogue(value) else fields.turns("prompt", "user")
    if find_messages(fields.get("context")):
        turns = [*fields.turns("context", "user"), *turns]
    elif context := fields.text("context"):
        turns = [*turns[:-1], turns[-1] | {"content": f"{context}\n\n{turns[-1]['content']}"}]
    return [*history_turns(fields), *turns]


def history_turns(fields: Fields) -> list[Message]:
    """The turns of `history`, which has the exchanges before a prompt."""
    history = decoded_cell(fields.get("history"))
    return parse_messages(history, fields.name("history"), fields.roles) if history else []


def indexed(name: str, messages: list[Message], *, first: int = 0) -> list[str]:
    """Where the messages of a column are: "messages[0]", "messages[1]", ..."""
    return [f"{name}[{index}]" for index in range(first, first + len(messages))]


def check_ends_with_assistant(turns: list[Message], name: str) -> None:
    """Refuse a response that is not an assistant turn with text."""
    if turns[-1]["role"] != "assistant":
        role = shown(turns[-1]["role"])
        raise BadRow(DropReason.NOT_AN_ASSISTANT_TURN, f"`{name}` must end with role 'assistant', got {role}")
    check_not_empty(turns[-1], name)


def _without_system(turns: list[Message]) -> list[Message]:
    return turns[1:] if turns and turns[0]["role"] == "system" else turns


def _stripped(turns: list[Message]) -> list[Message]:
    return [turn | {"content": turn["content"].strip()} for turn in turns]


def _is_continued(asked: list[Message], turns: list[Message]) -> bool:
    """Whether turns do not repeat the prompt, but follow it, as TRL's responses of several turns do."""
    return bool(asked) and asked[-1]["role"] != "assistant" and turns[0]["role"] == "assistant"


def _is_part_of(asked: list[Message], repeated: list[Message]) -> bool:
    """Whether the prompt, or its end, is repeated; or it is the beginning, or one user turn, of what is repeated."""
    if asked[-len(repeated) :] == repeated or repeated[: len(asked)] == asked:
        return True
    users = [turn for turn in repeated if turn["role"] == "user"]
    return len(asked) == 1 and asked[0] in (users[:1] + users[-1:])


def _the_system(chats: list[list[Message]], fields: Fields) -> list[Message]:
    """The system message of the row, once, wherever it stands.

    Raises:
        BadRow: If there are two different ones.
    """
    found = [turns[0] for turns in chats if turns and turns[0]["role"] == "system"]
    text = fields.text("system")
    if text:
        found.append({"role": "system", "content": text})
    found = [message for message in found if message["content"].strip()] or found
    if any(message["content"].strip() != found[0]["content"].strip() for message in found):
        where = f"`{fields.name('system')}`" if text else "the prompt, the chosen and the rejected conversation"
        raise BadRow(DropReason.TWO_SYSTEM_TEXTS, f"the system texts differ: see {where}")
    return found[:1]


def _score_gap(fields: Fields) -> float | None:
    """`score_chosen` minus `score_rejected`; None if one of them is missing."""
    chosen, rejected = (parse_score(fields.get(part), fields.name(part)) for part in ("score_chosen", "score_rejected"))
    return None if chosen is None or rejected is None else chosen - rejected
