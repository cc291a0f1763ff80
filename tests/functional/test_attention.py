"""Who may see whom, against the rule written as three loops."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smollit.functional.attention import render_mask, visibility


def by_loops(document: list[int], branch: list[int]) -> list[list[bool]]:
    """q sees k: same document, k not after q, k shared or of q's branch."""
    return [
        [document[q] == document[k] and k <= q and branch[k] in (0, branch[q]) for k in range(len(document))]
        for q in range(len(document))
    ]


# case: packing-01
def test_two_pairs_in_a_row_see_only_their_own_prompt_and_branch() -> None:
    """Documents 0 0 0 | 1 1 1, branches 0 1 2 each, one padding."""
    found = visibility(torch.tensor([[0, 0, 0, 1, 1, 1, -1]]), torch.tensor([[0, 1, 2, 0, 1, 2, 0]]))[0].int().tolist()
    assert found == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 0, 1, 0, 0, 0, 0],
        [0, 0, 0, 1, 0, 0, 0],
        [0, 0, 0, 1, 1, 0, 0],
        [0, 0, 0, 1, 0, 1, 0],
        [0, 0, 0, 0, 0, 0, 1],
    ]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(-1, 2), st.integers(0, 2)), min_size=1, max_size=8))
def test_any_row_follows_the_rule(row: list[tuple[int, int]]) -> None:
    """Random documents and branches against the loops; every position sees something, so no softmax is empty."""
    document, branch = (list(column) for column in zip(*row, strict=True))
    found = visibility(torch.tensor([document]), torch.tensor([branch]))[0]
    assert found.tolist() == by_loops(document, branch)
    assert found.diagonal().all()


def test_every_position_sees_itself() -> None:
    """A position's own branch is its branch: the diagonal is full, padding included."""
    assert visibility(torch.tensor([[0, 0, 0, -1]]), torch.tensor([[0, 1, 2, 0]]))[0].diagonal().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_eager_adds_zero_or_the_lowest_number(dtype: torch.dtype) -> None:
    """True -> 0, False -> the lowest number of the dtype; sdpa gets the booleans."""
    visible = torch.tensor([[[True, False], [True, True]]])
    mask = render_mask(visible, "eager", dtype)
    assert mask.dtype == dtype
    assert mask.tolist() == [[[[0.0, torch.finfo(dtype).min], [0.0, 0.0]]]]
    assert torch.equal(render_mask(visible, "sdpa", dtype), visible[:, None])


def test_branch_must_match_document() -> None:
    """3 documents beside 2 branches."""
    with pytest.raises(ValueError, match="`branch` must be"):
        visibility(torch.zeros(1, 3), torch.zeros(1, 2))
