"""Labels: columns that say of each completion whether it is a good one, as data for KTO have them."""

from collections.abc import Iterable
from typing import Any

from smollit.data.formats.drop_reason import BadRow, DropReason
from smollit.data.sources.files import Row

# Their usual names.
LABELS = (
    *("label", "labels", "kto_tag", "desirable", "is_desirable", "thumbs_up", "thumbs", "feedback", "vote", "liked"),
    *("upvoted", "good", "is_good", "preferred", "is_preferred", "accepted", "is_accepted", "is_chosen"),
    *("correct", "is_correct", "quality"),
)
# What they say of a good completion, and of a bad one, in lower case.
OPPOSITES = {
    "true": "false", "1": "0", "yes": "no", "good": "bad", "positive": "negative", "up": "down",
    "thumbs_up": "thumbs_down", "desirable": "undesirable", "chosen": "rejected", "accepted": "rejected",
    "correct": "incorrect", "like": "dislike", "liked": "disliked",
}  # fmt: skip
BAD_WORDS = {*OPPOSITES.values(), "-1"}
WORDS = {*OPPOSITES, *BAD_WORDS}
MAY_COUNT = ("labels", "quality", "vote", "feedback")  # whose numbers may be classes or scores


def is_label(values: list[Any]) -> bool:
    """Whether values that are not null say good or bad: true and false, 1 and 0, 1 and -1, or such words."""
    return bool(values) and all(_word(value) in WORDS for value in values)


def late_labels(rows: list[Row], filtered: Iterable[str]) -> frozenset[str]:
    """The usual names of labels, in lower case, of which the first rows have no value, and by which none are left out.

    Args:
        rows: The first rows.
        filtered: The columns that `data.where` reads.
    """
    seen = {name for row in rows for name, value in row.items() if value is not None}
    return frozenset(LABELS) - {name.lower() for name in (*seen, *filtered)}


def check_labels(row: Row, names: frozenset[str]) -> None:
    """Refuse a row if one of the labels calls its completion a bad one.

    Raises:
        BadRow: With the label.
    """
    for name, value in row.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        is_label = name.lower() in names and not (is_number and name.lower() in MAY_COUNT)
        if is_label and _word(value) in BAD_WORDS:
            raise BadRow(DropReason.BAD_COMPLETION, f"`{name}` is {value}")


def is_good(column: str, values: list[Any]) -> str:
    """The expression for a label of a good completion; in CSV files, true and false are texts."""
    name = column if column.isidentifier() else f'row["{column}"]'
    if not any(isinstance(value, str) for value in values):
        return f"{name} > 0" if any(value == -1 for value in values) else name
    words = {_word(value) for value in values}
    good = [word for word, bad in OPPOSITES.items() if {word, bad} & words]
    return f"lower({name}) in {good}"


def _word(value: Any) -> str:
    is_number = isinstance(value, float) and value.is_integer()
    return str(int(value) if is_number else value).strip().lower()
