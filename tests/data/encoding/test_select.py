"""`data.dedup` where a row becomes several examples."""

from collections.abc import Callable
from pathlib import Path

import pytest

from smollit.data import PreferenceDataModule
from tests.data.conftest import Row, pair_texts, ready

PAIRS: list[Row] = [
    {"prompt": "q", "chosen": "a", "rejected": ["b", "c", "c"]},
    {"prompt": "q", "chosen": "d", "rejected": "e"},
    {"prompt": "r", "chosen": "a", "rejected": "b"},
]


@pytest.mark.parametrize(
    ("same", "left"), [("prompt", ["qab", "qac", "qac", "rab"]), ("row", ["qab", "qac", "qde", "rab"])]
)
def test_pairs_of_one_row_do_not_repeat_its_prompt(
    same: str, left: list[str], write: Callable[..., str], tmp_path: Path
) -> None:
    """Row 0 has three pairs, two of them the same; row 1 repeats its prompt."""
    data = ready(tmp_path, write(PAIRS), PreferenceDataModule, dedup=same)
    found = [prompt.split("user\n")[1][0] + chosen[0] + rejected[0] for prompt, chosen, rejected in pair_texts(data)]
    assert found == left
    assert data.reports["train"].left_out == {"`data.dedup`": 1}
