"""Expressions over the columns of a row: what they are true for, and what is refused."""

from typing import Any

import pytest

from smollit.data.sources.where import Expression

ROW = {
    "score": 4,
    "text": "Ab",
    "meta": {"lang": "en", "tags": ["x", "y"]},
    "none": None,
    "a b": 1,
    "answers": [{"n": 1}],
}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("score > 3 and meta.lang in ['en', 'de']", True),
        ("3 < score <= 4 and not score == 5", True),
        ("score * 2 - 1 == 7 and score // 3 == 1 and -score < 0", True),
        ("len(text) == 2 and lower(text) == 'ab' and startswith(text, 'A')", True),
        ("float('4.5') > score or none", True),
        ("row['a b'] == 1 and meta['lang'] == 'en' and meta.tags[1] == 'y'", True),
        ("answers.n", [1]),
        ("'z' not in meta.tags", True),
        # null is equal to null alone, and neither above, below, nor inside anything
        ("none == null and none != 0 and missing is None", True),
        ("none > 0 or none < 0 or none in ['x'] or len(none) > 0", False),
        ("true", True),
    ],
)
def test_values(text: str, value: Any) -> None:
    assert Expression(text)(ROW) == value


# promise: row-filters
@pytest.mark.parametrize(
    "text",
    [
        "score >", "__import__('os')", "text.upper()", "(lambda: 1)()", "[x for x in meta]", "score ** 9", "f'{score}'",
        "score if true else 1", "open('/etc/passwd')", "len(text, key=1)", "'a'.lower", "(" * 500 + ")" * 500,
    ],
)  # fmt: skip
def test_nothing_but_columns_and_the_listed_functions_is_run(text: str) -> None:
    with pytest.raises(ValueError, match=r"(?s)`data.where` is .* no expression over columns"):
        Expression(text)


def test_what_can_not_be_computed_names_the_cause_and_the_row() -> None:
    """As CSV has it: the text "4" is not above the number 3."""
    with pytest.raises(ValueError, match=r"`data.where: score > 3` can't be computed .*'score': '4'.*float\(...\)"):
        Expression("score > 3")({"score": "4"})
