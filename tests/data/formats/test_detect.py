"""Which format a split has: from its columns and first rows, or from the config; and what does not fit."""

import json
from typing import Any

import pytest

from smollit.data.formats.detection.detect import detect_format
from smollit.data.formats.drop_reason import BadRow
from smollit.data.formats.messages.roles import Roles
from smollit.data.formats.types import Conversation, Kind
from tests.data.conftest import Row, assistant, user
from tests.data.formats.conftest import HI, columns_of, gpt, human, known, pair, to_record, turns

LONE = ("messages", "score_chosen")  # one score alone is not used


def refused(columns: list[str], kind: Kind, rows: list[Row] | None = None, **options: Any) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  (the message is what the tests look at)
        detect_format(columns, rows or [], kind=kind, where="split train of d", **options)
    return str(caught.value)


# ---- which format it is


@pytest.mark.parametrize(
    ("columns", "kind", "name", "unused"),
    [
        (["prompt", "prompt_id", "messages"], "chat", "messages", ("prompt", "prompt_id")),
        (["text", "conversations", "messages"], "chat", "messages", ("text", "conversations")),
        (["messages", "prompt", "completion"], "chat", "messages", ("prompt", "completion")),
        (["prompt", "completion", "instruction", "output"], "chat", "prompt_completion", ("instruction", "output")),
        (["instruction", "input", "output", "text"], "chat", "alpaca", ("text",)),
        (["text", "id"], "chat", "text", ("id",)),
        (["prompt", "chosen", "rejected", "messages", "score_chosen"], "preference", "preference", LONE),
    ],
)
def test_precedence(columns: list[str], kind: Kind, name: str, unused: tuple[str, ...]) -> None:
    format = detect_format(columns, [], kind=kind)
    assert (format.name, format.unused) == (name, unused)
    assert "columns not used: " + ", ".join(unused) in format.describe()


def test_texts_are_dialogues_where_most_of_them_are() -> None:
    """One of three is not most."""
    assert known([{"text": "Human: a\n\nAssistant: b"}, {"text": "Once."}, {"text": "Twice."}]).name == "text"


def test_sharegpt_is_described() -> None:
    assert known([{"conversations": [human("hi"), gpt("yo")]}]).describe() == (
        "ShareGPT: `conversations` (from/value or role/content); roles human -> user, gpt -> assistant"
    )
    assert known([{"messages": HI}]).describe() == "Messages: `messages` (role/content)"


@pytest.mark.parametrize(
    ("columns", "kind", "said"),
    [
        (["prompt", "completion"], "chat", "`prompt` is context, `completion` has the loss tokens"),
        (
            ["instruction", "input", "output"],
            "chat",
            "Alpaca: `instruction` and `input` as the user turn, `output` as the assistant turn",
        ),
        (["text"], "chat", "Plain text: `text`, every token is a loss token and no chat template is used"),
        (["chosen", "rejected"], "preference", "`chosen` over `rejected`, prompt from their common turns"),
        (["messages", "system"], "chat", "; system text from `system`"),
        (
            ["prompt", "chosen", "rejected", "score_chosen", "score_rejected"],
            "preference",
            "prompt from `prompt`; scores from `score_chosen` and `score_rejected`",
        ),
    ],
)
def test_formats_are_described(columns: list[str], kind: Kind, said: str) -> None:
    assert said in detect_format(columns, [], kind=kind).describe()


def test_extra_roles_are_kept_and_described() -> None:
    """`observation` would be read as tool, were it not listed."""
    rows = [{"conversations": [human("a"), {"from": "observation", "value": "b"}, gpt("c")]}]
    format = known(rows, extra_roles=["observation"])
    assert format.roles == Roles(("observation",), sharegpt=True)
    roles = [turn["role"] for turn in turns(rows[0], extra_roles=["observation"])]
    assert roles == ["user", "observation", "assistant"]
    assert "roles human -> user, gpt -> assistant; extra roles observation" in format.describe()


# ---- the user's mapping


def test_columns_can_be_mapped() -> None:
    """{canonical: own}; the columns' own names are in the errors."""
    rows = [{"question": "q", "better": "a", "worse": "b", "up": 3, "down": 1}]
    mapping = {
        "prompt": "question",
        "chosen": "better",
        "rejected": "worse",
        "score_chosen": "up",
        "score_rejected": "down",
    }
    format = known(rows, "preference", mapping=mapping)
    assert pair(rows[0], kind="preference", mapping=mapping) == ([user("q")], assistant("a"), assistant("b"), 2.0)
    assert format.unused == ()
    with pytest.raises(BadRow, match="empty response: worse"):
        to_record(rows[0] | {"worse": ""}, format)


@pytest.mark.parametrize("part", ["messages", "conversations"])
def test_messages_and_conversations_are_one_part(part: str) -> None:
    assert turns({"dialog": [human("hi"), gpt("yo")]}, mapping={part: "dialog"}) == HI


def test_a_mapping_chooses_among_the_formats_that_fit() -> None:
    """`messages` comes first, but has no part `completion`."""
    rows = [{"messages": HI, "prompt": "q", "answer": "a"}]
    assert known(rows, mapping={"completion": "answer"}).name == "prompt_completion"


def test_a_part_can_be_switched_off() -> None:
    assert turns({"messages": HI, "system": "a version number"}, mapping={"system": ""}) == HI


@pytest.mark.parametrize(
    ("mapping", "named"),
    [
        (
            {"messages": "dialogs"},
            "`messages` to the column 'dialogs', which split train of d does not have. Nearest: dialog",
        ),
        ({"messages": "zzz"}, "Nearest: dialog, id"),
        ({"message": "dialog"}, "the key 'message', which must be one of audio, audios, "),
        ({"messages": "dialog", "output": "id"}, "maps messages, output, and none of the formats sharegpt, messages,"),
    ],
)
def test_mappings_that_cannot_be_are_refused(mapping: dict[str, str], named: str) -> None:
    assert named in refused(["dialog", "id"], "chat", mapping=mapping)


def test_one_score_alone_is_refused() -> None:
    columns = ["prompt", "chosen", "rejected", "up"]
    assert "maps score_chosen alone" in refused(columns, "preference", mapping={"score_chosen": "up"})


# ---- data that do not fit


def test_pairs_given_to_the_chat_module_are_refused_in_one_sentence() -> None:
    said = refused(["prompt", "chosen", "rejected"], "chat")
    assert said.startswith("split train of d has the columns prompt, chosen, rejected, but chats need `messages` (or")
    assert said.endswith(". These are preference pairs: use UltraFeedbackDataModule")


def test_chats_given_to_the_preference_module_are_refused_in_one_sentence() -> None:
    said = refused(["prompt", "messages"], "preference")
    assert "preference pairs need `chosen` and `rejected`. These are chats: use UltraChatDataModule" in said


def test_unknown_columns_are_named() -> None:
    said = refused(["a", "b"], "chat")
    assert "has the columns a, b, but chats need" in said
    assert said.endswith("or `text`. Map parts to columns with `data.columns`")
    assert "(none)" in refused([], "chat")
    assert "and 88 more" in refused([str(number) for number in range(100)], "chat")


def test_a_format_says_what_it_needs() -> None:
    assert "but `data.format: alpaca` needs `instruction` and `output`" in refused(["text"], "chat", format="alpaca")
    assert (
        "`data.format` is text, but preference pairs have the formats ranked, dialogue, preference, thread, unpaired"
        in refused(["text"], "preference", format="text")
    )


@pytest.mark.parametrize("response", ["a", [assistant("a")], assistant("a"), json.dumps([assistant("a")])])
def test_pairs_without_a_prompt_are_refused_at_once(response: Any) -> None:
    rows = [{"asked": "q", "chosen": response, "rejected": response}]
    assert "such as `data.columns: {prompt: asked}`" in refused(columns_of(rows), "preference", rows)


def test_written_messages_are_not_a_response_alone() -> None:
    """JSON text of a whole conversation brings its prompt."""
    row = {part: json.dumps([user("q"), assistant(part)]) for part in ("chosen", "rejected")}
    assert pair(row)[:3] == ([user("q")], assistant("chosen"), assistant("rejected"))


def test_pairs_of_which_some_lack_a_prompt_are_counted_row_by_row() -> None:
    whole = {part: [user("q"), assistant(part)] for part in ("chosen", "rejected")}
    assert known([{"chosen": "a", "rejected": "b"}, whole], "preference").name == "preference"


def test_without_rows_there_is_nothing_to_refuse() -> None:
    """Only null responses: the rows are counted, not the split refused."""
    assert known([{"chosen": None, "rejected": None}], "preference").name == "preference"


def test_columns_that_only_later_rows_have_are_used_unless_the_user_says_otherwise() -> None:
    """JSON has other keys in each row. A column that the first rows have and no part uses stays unused."""
    late = {"messages": HI, "system_prompt": "S", "tools": [{"name": "add"}], "context": "C"}
    format = known([{"messages": HI, "context": "C"}])
    found = to_record(late, format)
    assert isinstance(found, Conversation) and format.unused == ("context",)
    assert [turn["content"] for turn in found.messages] == ["S", "hi", "yo"]
    assert found.variables == {"tools": [{"name": "add"}]}
    found = to_record(late, known([{"messages": HI}], mapping={"system": "", "tools": ""}))
    assert isinstance(found, Conversation) and found == Conversation(HI)
    asked = to_record({"prompt": "Q", "completion": "A", "context": "C"}, known([{"prompt": "Q", "completion": "A"}]))
    assert isinstance(asked, Conversation) and asked.messages[0]["content"] == "C\n\nQ"
