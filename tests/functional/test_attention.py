"""Who may see whom, against the rule written as three loops."""

import math
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode

from smollit.batch import Document
from smollit.functional import attention
from smollit.functional.attention import attention_mask, document_attention, mask_for


def by_loops(document: list[int], branch: list[int]) -> list[list[bool]]:
    """q sees k: same document, k not after q, k shared or of q's branch."""
    return [
        [document[q] == document[k] and k <= q and branch[k] in (0, branch[q]) for k in range(len(document))]
        for q in range(len(document))
    ]


# case: packing-01
def test_two_pairs_in_a_row_see_only_their_own_prompt_and_branch() -> None:
    """Documents 0 0 0 | 1 1 1, branches 0 1 2 each, one padding."""
    found = (
        attention_mask(torch.tensor([[0, 0, 0, 1, 1, 1, -1]]), torch.tensor([[0, 1, 2, 0, 1, 2, 0]]))[0].int().tolist()
    )
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
    found = attention_mask(torch.tensor([document]), torch.tensor([branch]))[0]
    assert found.tolist() == by_loops(document, branch)
    assert found.diagonal().all()


def test_every_position_sees_itself() -> None:
    """A position's own branch is its branch: the diagonal is full, padding included."""
    assert attention_mask(torch.tensor([[0, 0, 0, -1]]), torch.tensor([[0, 1, 2, 0]]))[0].diagonal().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_eager_adds_zero_or_the_lowest_number(dtype: torch.dtype) -> None:
    """True -> 0, False -> the lowest number of the dtype; sdpa gets the booleans."""
    visible = torch.tensor([[[True, False], [True, True]]])
    mask = mask_for("eager", visible, dtype)
    assert mask.dtype == dtype
    assert mask.tolist() == [[[[0.0, torch.finfo(dtype).min], [0.0, 0.0]]]]
    assert torch.equal(mask_for("sdpa", visible, dtype), visible[:, None])


def test_branch_must_match_document() -> None:
    """3 documents beside 2 branches."""
    with pytest.raises(ValueError, match="`branch` must be"):
        attention_mask(torch.zeros(1, 3), torch.zeros(1, 2))


# ---- each document by itself


def by_softmax(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: list[Document]) -> torch.Tensor:
    """The whole score matrix of each head under the rule of `by_loops`: softmax(q k / sqrt(D)) v."""
    document = [number for number, part in enumerate(layout) for _ in range(part.length)]
    branch = [b for part in layout for b, count in enumerate((part.shared, *part.responses)) for _ in range(count)]
    visible, heads = torch.tensor(by_loops(document, branch)), []
    for head in range(q.shape[1]):
        keys, values = (tensor[0, head // (q.shape[1] // k.shape[1])] for tensor in (k, v))
        scores = q[0, head] @ keys.T / math.sqrt(q.shape[3])
        heads.append(torch.softmax(scores.masked_fill(~visible, -math.inf), dim=1) @ values)
    return torch.stack(heads)[None]


chat_layouts = st.builds(Document, st.integers(1, 5), st.just(()))
response_layouts = st.builds(
    Document, st.integers(0, 4), st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple)
)


# case: packing-01
@settings(max_examples=60, deadline=None)
@given(
    st.lists(chat_layouts | response_layouts, min_size=1, max_size=4),
    st.sampled_from([(2, 2), (4, 2), (3, 1)]),
    st.sampled_from([1, 2, 256]),
)
def test_documents_by_themselves_are_the_rule_over_the_whole_row(
    layout: list[Document], heads: tuple[int, int], block: int
) -> None:
    """Random rows of chats and pairs, also pairs with a prompt of one token (nothing shared), 1, 2 or 3 query heads per
    key head, and at most 1, 2 or 256 queries at once: values and gradients in fp64 to 1e-10."""
    length = sum(part.length for part in layout)
    torch.manual_seed(length)
    inputs = [torch.randn(1, count, length, 4, dtype=torch.float64, requires_grad=True) for count in (*heads, heads[1])]
    weights = torch.randn(1, heads[0], length, 4, dtype=torch.float64)
    results = []
    for attend in (
        lambda *args: document_attention(*args, layout, scale=None),
        lambda *args: by_softmax(*args, layout),
    ):
        with patch.object(attention, "CPU_BLOCK", block):
            output = attend(*inputs)
        results.append([output, *torch.autograd.grad((output * weights).sum(), inputs)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_a_block_of_queries_meets_no_key_that_none_of_them_sees() -> None:
    """A chat of 600: 3 blocks of 200 with 200, 400 and 600 keys. A pair, 10 shared, 256 chosen and 300 rejected: 266 as
    2 blocks of 133, with 133 and 266 keys; 300 as 2 blocks of 150, with 160 and 310. A chat of 256: one block."""
    calls = []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.nn.functional.scaled_dot_product_attention:
                calls.append((args[0].shape[2], args[1].shape[2]))
            return func(*args, **(kwargs or {}))

    layout = [Document(600), Document(10, (256, 300)), Document(256)]
    tensor = torch.zeros(1, 1, 600 + 566 + 256, 2)
    with Watch():
        document_attention(tensor, tensor, tensor, layout, scale=None)
    assert calls == [(200, 200), (200, 400), (200, 600), (133, 133), (133, 266), (150, 160), (150, 310), (256, 256)]


def test_the_scale_and_the_dropout_arrive() -> None:
    """Keys 0: all visible positions weigh the same. Half the scale is half the query; dropout 1 drops everything."""
    torch.manual_seed(0)
    value, layout = torch.arange(3.0).view(1, 1, 3, 1), [Document(2), Document(1)]
    query, key = torch.randn(1, 1, 3, 1), torch.randn(1, 1, 3, 1)
    equal = document_attention(query, torch.zeros_like(key), value, layout, scale=None)
    assert equal.flatten().tolist() == [0.0, 0.5, 2.0]
    halved = document_attention(query, key, value, layout, scale=0.5)
    torch.testing.assert_close(halved, document_attention(query / 2, key, value, layout, scale=1.0))
    assert not document_attention(query, key, value, [Document(1, (1, 1))], scale=1.0, dropout=1.0).any()


def test_the_layout_must_fill_the_row() -> None:
    """Documents of 2 and 2 positions in a row of 5."""
    tensor = torch.zeros(1, 1, 5, 2)
    with pytest.raises(ValueError, match="has 4 positions, and `query` 5"):
        document_attention(tensor, tensor, tensor, [Document(2), Document(1, (0, 1))], scale=None)
