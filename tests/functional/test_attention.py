"""The attention mask of packed documents and responses, against the rule written as loops."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.overrides import TorchFunctionMode

from smollit.batch import Document
from smollit.functional.attention import attention_mask, document_attention, mask_for


def by_loops(document: list[int], branch: list[int]) -> list[list[bool]]:
    """q attends to k: same document, k not later than q, k shared or of q's branch."""
    return [
        [document[q] == document[k] and k <= q and branch[k] in (0, branch[q]) for k in range(len(document))]
        for q in range(len(document))
    ]


# case: packing-01
def test_two_packed_pairs_attend_to_their_own_prompt_and_branch_only() -> None:
    """Documents 0 0 0 | 1 1 1, branches 0 1 2 each, one padding."""
    mask = attention_mask(torch.tensor([[0, 0, 0, 1, 1, 1, -1]]), torch.tensor([[0, 1, 2, 0, 1, 2, 0]]))
    assert mask[0].int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 0, 1, 0, 0, 0, 0],
        [0, 0, 0, 1, 0, 0, 0],
        [0, 0, 0, 1, 1, 0, 0],
        [0, 0, 0, 1, 0, 1, 0],
        [0, 0, 0, 0, 0, 0, 1],
    ]


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(-1, 2), st.integers(0, 3)), min_size=1, max_size=8))
def test_any_sequence_follows_the_rule(positions: list[tuple[int, int]]) -> None:
    """Random documents, padding, and up to 3 branches; every position attends to itself, so no softmax is empty."""
    document, branch = (list(column) for column in zip(*positions, strict=True))
    mask = attention_mask(torch.tensor([document]), torch.tensor([branch]))[0]
    assert mask.tolist() == by_loops(document, branch)
    assert mask.diagonal().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_eager_adds_zero_or_the_lowest_number(dtype: torch.dtype) -> None:
    """True -> 0, False -> the lowest number of the dtype; sdpa gets the booleans."""
    mask = torch.tensor([[[True, False], [True, True]]])
    added = mask_for("eager", mask, dtype)
    assert added.dtype == dtype
    assert added.tolist() == [[[[0.0, torch.finfo(dtype).min], [0.0, 0.0]]]]
    assert torch.equal(mask_for("sdpa", mask, dtype), mask[:, None])


# ---- document by document


def by_softmax(q: Tensor, k: Tensor, v: Tensor, layout: list[Document]) -> Tensor:
    """The whole score matrix of each head under the rule of `by_loops`: softmax(q k / sqrt(D)) v."""
    document = [number for number, part in enumerate(layout) for _ in range(part.length)]
    branch = [b for part in layout for b, count in enumerate((part.shared, *part.responses)) for _ in range(count)]
    mask, heads = torch.tensor(by_loops(document, branch)), []
    for head in range(q.shape[1]):
        keys, values = (tensor[0, head // (q.shape[1] // k.shape[1])] for tensor in (k, v))
        scores = q[0, head] @ keys.T / math.sqrt(q.shape[3])
        heads.append(torch.softmax(scores.masked_fill(~mask, -math.inf), dim=1) @ values)
    return torch.stack(heads)[None]


def assert_same_attention(layout: list[Document], query_heads: int, key_heads: int) -> None:
    """Values and gradients of random inputs in fp64, to 1e-10."""
    length = sum(document.length for document in layout)
    torch.manual_seed(length)
    heads = (query_heads, key_heads, key_heads)
    inputs = [torch.randn(1, count, length, 4, dtype=torch.float64, requires_grad=True) for count in heads]
    weights = torch.randn(1, query_heads, length, 4, dtype=torch.float64)
    found, expected = document_attention(*inputs, layout), by_softmax(*inputs, layout)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    ours, theirs = (torch.autograd.grad((output * weights).sum(), inputs) for output in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


chats = st.builds(Document, st.integers(1, 5), st.just(()))
responses = st.builds(Document, st.integers(0, 4), st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple))


# case: packing-01
@settings(max_examples=60)
@given(st.lists(chats | responses, min_size=1, max_size=4), st.sampled_from([(2, 2), (4, 2), (3, 1)]))
def test_documents_by_themselves_follow_the_rule_of_the_whole_sequence(
    layout: list[Document], heads: tuple[int, int]
) -> None:
    """Random packed chats and prompts with up to 3 responses, also prompts of one token (nothing shared), and 1, 2 or 3
    query heads per key head."""
    assert_same_attention(layout, *heads)


@pytest.mark.parametrize("heads", [(2, 2), (4, 2)])
@pytest.mark.slow
def test_long_documents_are_computed_in_blocks_without_superfluous_keys(heads: tuple[int, int]) -> None:
    """A chat of 600: 3 blocks of 200 with 200, 400 and 600 keys. 10 shared positions with responses of 256 and 300: 266
    as 2 blocks of 133, with 133 and 266 keys; 300 as 2 blocks of 150, with 160 and 310. A chat of 256: one block."""
    layout, sizes = [Document(600), Document(10, (256, 300)), Document(256)], []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if func is torch.nn.functional.scaled_dot_product_attention:
                sizes.append((args[0].shape[2], args[1].shape[2]))
            return func(*args, **(kwargs or {}))

    with Watch():
        assert_same_attention(layout, *heads)
    assert sizes == [(200, 200), (200, 400), (200, 600), (133, 133), (133, 266), (150, 160), (150, 310), (256, 256)]


def test_scale_and_dropout_are_used() -> None:
    """Keys 0: all keys have the same weight. Half the scale is half the query; dropout 1 drops everything."""
    torch.manual_seed(0)
    value, layout = torch.arange(3.0).view(1, 1, 3, 1), [Document(2), Document(1)]
    query, key = torch.randn(1, 1, 3, 1), torch.randn(1, 1, 3, 1)
    assert document_attention(query, torch.zeros_like(key), value, layout).flatten().tolist() == [0.0, 0.5, 2.0]
    halved = document_attention(query, key, value, layout, scale=0.5)
    torch.testing.assert_close(halved, document_attention(query / 2, key, value, layout, scale=1.0))
    assert not document_attention(query, key, value, [Document(1, (1, 1))], dropout=1.0).any()


def test_shapes_that_do_not_match_are_named() -> None:
    """Documents of 2 and 2 positions in a sequence of 5; 3 documents beside 2 branches."""
    tensor = torch.zeros(1, 1, 5, 2)
    with pytest.raises(ValueError, match="has 4 positions, and `query` 5"):
        document_attention(tensor, tensor, tensor, [Document(2), Document(1, (0, 1))])
    with pytest.raises(ValueError, match="`branch` must be"):
        attention_mask(torch.zeros(1, 3), torch.zeros(1, 2))
