"""One kernel call for all documents: its boundaries, and its rule in plain torch against `document_attention`."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smollit.batch import Document, Joined
from smollit.functional.attention import ScoreOptions, document_attention
from smollit.functional.varlen import joined_attention, varlen_reference

chats = st.builds(Document, st.integers(1, 5), st.just(()))
responses = st.builds(Document, st.integers(0, 4), st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple))


def joined_of(layout: list[list[Document]], width: int, loss_positions: list[int]) -> Joined:
    return Joined.of(layout, width=width, loss_positions=torch.tensor(loss_positions, dtype=torch.long))


def test_boundaries_of_chats_and_pairs() -> None:
    """Sequences of width 12: a chat of 3 and a pair of 2 + (3, 4), then a chat of 5. Joined positions 0-2, 3-11, 12-16:
    queries 3 | 2 + 3 | 4 | 5, keys 3 | 5 | 2 + 4 | 5; the rejected response's keys are 3, 4 and 8 to 11."""
    joined = joined_of([[Document(3), Document(2, (3, 4))], [Document(5)]], 12, [1, 11, 12, 16])
    assert joined.positions.tolist() == [*range(12), *range(12, 17)]
    assert joined.loss_positions.tolist() == [1, 11, 12, 16]
    assert joined.query_boundaries.tolist() == [0, 3, 8, 12, 17]
    assert joined.key_boundaries.tolist() == [0, 3, 8, 14, 19]
    assert joined.key_positions is not None
    assert joined.key_positions.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 3, 4, 8, 9, 10, 11, 12, 13, 14, 15, 16]
    assert (joined.longest_query, joined.longest_key) == (512, 512)  # few numbers to compile for
    assert joined_of([[Document(513, (1023, 9))]], 1545, []).longest_key == 2048
    assert joined.query_boundaries.dtype == joined.key_boundaries.dtype == torch.int32


def test_padding_is_left_out_and_chats_need_no_keys_of_their_own() -> None:
    """Chats of 2 and 3 in rows of width 4: position 1 of the second row is 5 in the batch, and 3 here."""
    joined = joined_of([[Document(2)], [Document(3)]], 4, [1, 5])
    assert joined.positions.tolist() == [0, 1, 4, 5, 6]
    assert joined.loss_positions.tolist() == [1, 3]
    assert joined.key_positions is None
    assert joined_of([], 1, []).query_boundaries.tolist() == [0, 1]  # the empty batch has one position of padding


# promise: varlen
@settings(max_examples=60)
@given(
    st.lists(chats | responses, min_size=1, max_size=4),
    st.sampled_from([(2, 2), (4, 2), (3, 1)]),
    st.sampled_from([None, 1, 3]),
)
def test_one_call_computes_what_documents_compute(
    layout: list[Document], heads: tuple[int, int], window: int | None
) -> None:
    """Random chats and prompts with up to 3 responses, grouped heads, windows: values and gradients to 1e-10."""
    joined = joined_of([layout], sum(document.length for document in layout), [])
    torch.manual_seed(joined.positions.numel())
    queries, keys = heads
    shapes = [(1, count, joined.positions.numel(), 4) for count in (queries, keys, keys)]
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    gradient = torch.randn(shapes[0], dtype=torch.float64)
    options = ScoreOptions(scale=0.3, window=window)
    found = joined_attention(*inputs, joined, kernel=varlen_reference, options=options)
    expected = document_attention(*inputs, layout, scale=0.3, window=window)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    ours, theirs = (torch.autograd.grad(output, inputs, gradient) for output in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("softcap", [0.5, 20.0])
def test_a_softcap_bounds_the_scores_of_documents(softcap: float) -> None:
    """Two positions, keys 0 and 1, query q at position 1: weights are softmax of cap tanh(0) and cap tanh(q / cap)."""
    query, key = torch.tensor([0.0, 3.0]).view(1, 1, 2, 1), torch.tensor([0.0, 1.0]).view(1, 1, 2, 1)
    found = document_attention(query, key, key, [Document(2)], softcap=softcap)[0, 0, 1, 0]
    torch.testing.assert_close(found, torch.sigmoid(torch.tensor(softcap) * torch.tanh(torch.tensor(3.0 / softcap))))
