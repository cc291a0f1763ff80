"""Examples -> Batch: labels, branches, packing, and padding known from lengths."""

import math
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from smollit.batch import IGNORE, PADDING, SHARED, Batch
from smollit.data.batching.collate import collate_chats, collate_pairs, collate_prompts, unpacked

ids = st.lists(st.integers(0, 99), min_size=1, max_size=6)
pairs = st.fixed_dictionaries({"prompt_ids": ids, "chosen_ids": ids, "rejected_ids": ids, "row": st.integers(0, 99)})
FIELDS = ("input_ids", "labels", "position_ids", "document", "branch")  # [R, T]


def chat(tokens: list[int], spans: list[int], row: int = 0) -> dict[str, Any]:
    return {"input_ids": tokens, "spans": spans, "row": row}


def fields(batch: Batch) -> dict[str, torch.Tensor]:
    """The padded tensors by name."""
    return {name: tensor for name, tensor in batch._asdict().items() if name in FIELDS}


# case: mask-01, metrics-12
def test_a_chat_predicts_the_next_token_within_its_loss_spans() -> None:
    """Ids 1 9 2 1 8 2 with loss on [4, 6): after the shift, positions 3 and 4 predict 8 and 2. 5 positions are real,
    although two of them hold the id that ends a turn, and often pads; beside 7 positions it gets 2 of padding."""
    batch = collate_chats(unpacked([chat([1, 9, 2, 1, 8, 2], [4, 6]), chat([1, 9, 2, 1, 8, 7, 7, 2], [4, 8])]))
    assert batch.input_ids[0, :5].tolist() == [1, 9, 2, 1, 8]
    assert batch.labels[0].tolist() == [IGNORE, IGNORE, IGNORE, 8, 2, IGNORE, IGNORE]
    assert batch.document[0].tolist() == [0] * 5 + [PADDING] * 2
    assert batch.num_loss_tokens == 2 + 4


# case: dpo-loss-08, dpo-loss-09
def test_a_pair_has_its_prompt_once_and_labels_for_its_responses_only() -> None:
    """Prompt 11 2 13, chosen 5 6 2, rejected 7 2: 2 shared positions, then 3 and 2 that begin with the last prompt
    token. The id 2 ends an earlier turn and both responses: none of these positions is padding."""
    batch = collate_pairs([[{"prompt_ids": [11, 2, 13], "chosen_ids": [5, 6, 2], "rejected_ids": [7, 2], "row": 4}]])
    assert batch.input_ids.tolist() == [[11, 2, 13, 5, 6, 13, 7]]
    assert batch.labels.tolist() == [[IGNORE, IGNORE, 5, 6, 2, 7, 2]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 2, 3]]
    assert batch.branch.tolist() == [[SHARED, SHARED, 1, 1, 1, 2, 2]]
    assert (batch.document == 0).all()
    assert batch.layout == (((2, (3, 2)),),)
    assert batch.example_ids.tolist() == [4]
    assert not batch.causal


# case: dpo-loss-09
@given(pair=pairs)
def test_each_branch_reads_as_a_sequence_of_its_own(pair: dict[str, Any]) -> None:
    """Shared positions + one branch = prompt + response, shifted by one, with no loss on the prompt. Collating leaves
    the example as it was."""
    before = {name: list(value) for name, value in pair.items() if name != "row"}
    batch = collate_pairs([[pair]])
    for branch, response in ((1, pair["chosen_ids"]), (2, pair["rejected_ids"])):
        attended = ((batch.branch == SHARED) | (batch.branch == branch))[0]
        plain = pair["prompt_ids"] + response
        assert batch.input_ids[0, attended].tolist() == plain[:-1]
        assert batch.position_ids[0, attended].tolist() == list(range(len(plain) - 1))
        assert batch.labels[0, attended].tolist() == [IGNORE] * (len(pair["prompt_ids"]) - 1) + response
    assert before == {name: pair[name] for name in before}


@given(sequences=st.lists(st.lists(pairs, min_size=1, max_size=3), min_size=1, max_size=3))
def test_an_example_taken_out_of_a_batch_is_the_example_collated_alone(sequences: list[list[dict[str, Any]]]) -> None:
    """Pairs and chats of one to three packed sequences, also two with equal row numbers; gaps and reference values are
    those of the example."""
    flat = [
        pair | {"score_gap": 1.0 * i, "reference_chosen": -1.0 - i, "reference_rejected": -2.0 * i}
        for i, pair in enumerate(pair for sequence in sequences for pair in sequence)
    ]
    scored = iter(flat)
    packed_pairs = [[next(scored) for _ in sequence] for sequence in sequences]
    packed_chats = [[chat(p["prompt_ids"] + p["chosen_ids"], [1, 2], p["row"]) for p in part] for part in sequences]
    for collate, packed in ((collate_pairs, packed_pairs), (collate_chats, packed_chats)):
        batch = collate(packed)
        for index, example in enumerate(example for sequence in packed for example in sequence):
            alone, taken = collate([[example]]), batch.example(index)
            assert taken.layout == alone.layout
            for name in (*FIELDS, "loss_positions", "example_ids", "pairs", "score_gap", "reference_logps"):
                expected, found = getattr(alone, name), getattr(taken, name)
                assert (expected is None and found is None) or torch.equal(expected, found), name


# case: packing-03
def test_a_packed_sequence_is_its_examples_one_after_the_other() -> None:
    """Chats of 4 and 3 tokens in one sequence, one of 2 in the next: 3 + 2 and 1 positions."""
    examples = [chat([5, 6, 7, 8], [1, 4], 10), chat([1, 2, 3], [2, 3], 11), chat([8, 9], [1, 2], 12)]
    batch = collate_chats([examples[:2], examples[2:]])
    assert batch.input_ids.tolist() == [[5, 6, 7, 1, 2], [8, 0, 0, 0, 0]]
    assert batch.labels.tolist() == [[6, 7, 8, IGNORE, 3], [9] + [IGNORE] * 4]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1], [0] * 5]
    assert batch.document.tolist() == [[0, 0, 0, 1, 1], [2] + [PADDING] * 4]
    assert batch.loss_positions.tolist() == [0, 1, 2, 4, 5]
    assert batch.example_ids.tolist() == [10, 11, 12]
    assert batch.layout == (((3, ()), (2, ())), ((1, ()),))
    assert not batch.causal
    assert collate_chats(unpacked(examples)).causal


# case: packing-01, data-15
@given(rows=st.lists(st.lists(pairs, min_size=1, max_size=3), min_size=1, max_size=3), multiple=st.integers(1, 9))
def test_the_layout_says_what_the_tensors_say(rows: list[list[dict[str, Any]]], multiple: int) -> None:
    """Documents, branches, padding and counts, read off the layout and off the tensors. Every pair is as it is alone,
    whatever is beside it and however wide the padding is."""
    batch = collate_pairs(rows, multiple)
    longest = max(sum(document.length for document in documents) for documents in batch.layout)
    assert {field.shape for field in fields(batch).values()} == {(len(rows), math.ceil(longest / multiple) * multiple)}
    numbers = iter(range(batch.num_examples))
    for row, documents in enumerate(batch.layout):
        document = [number for part in documents for number in [next(numbers)] * part.length]
        branch = [
            b for part in documents for b, count in enumerate((part.shared, *part.responses)) for _ in range(count)
        ]
        padding = batch.input_ids.shape[1] - len(document)
        assert batch.document[row].tolist() == document + [PADDING] * padding
        assert batch.branch[row].tolist() == branch + [SHARED] * padding
        assert batch.labels[row, len(document) :].tolist() == [IGNORE] * padding
    assert batch.num_tokens == (batch.document != PADDING).sum()
    assert torch.equal(batch.loss_positions, torch.nonzero(batch.labels.flatten() != IGNORE).flatten())
    responses = (2 * batch.document + batch.branch - 1).flatten()[batch.loss_positions]
    assert batch.response_lengths == torch.bincount(responses, minlength=2 * batch.num_examples).tolist()
    for number, pair in enumerate(pair for row in rows for pair in row):
        alone, there = fields(collate_pairs([[pair]])), batch.document == number
        for name, field in fields(batch).items():
            assert torch.equal(field[there], alone[name][0] + (number if name == "document" else 0))


def test_scores_and_reference_values_go_with_their_pair() -> None:
    """Gaps 1.5, 1.0 and 0.5 in sequences of two pairs and one. Gaps and reference values are there only if every pair
    has them; responses are counted through the batch."""
    pair = {"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [4], "row": 0}
    values = {"reference_chosen": -1.5, "reference_rejected": -2.5}
    one, two, three = (pair | {"score_gap": gap} | values for gap in (1.5, 1.0, 0.5))
    batch = collate_pairs([[one, two], [three]])
    assert batch.pairs.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert batch.score_gap.tolist() == [1.5, 1.0, 0.5]
    assert batch.reference_logps[batch.pairs].tolist() == [[-1.5, -2.5]] * 3
    assert collate_pairs([[one, pair]]).score_gap is None
    assert collate_pairs([[one, pair | {"score_gap": math.nan}]]).score_gap is None
    assert collate_pairs([[pair | values, pair]]).reference_logps is None


def test_no_examples_give_one_sequence_of_padding() -> None:
    """A rank without examples at the end of an epoch: 0 examples, 0 loss tokens, 0 tokens, 0 pairs."""
    for collate in (collate_chats, collate_pairs, collate_prompts):
        batch = collate([])
        assert (batch.num_examples, batch.num_tokens, batch.num_loss_tokens) == (0, 0, 0)
        assert batch.input_ids.shape == (1, 1)
        assert batch.layout == ()
    pairs_of_none = collate_pairs([])
    assert (pairs_of_none.pairs.shape, pairs_of_none.score_gap.shape) == ((0, 2), (0,))
    assert pairs_of_none.reference_logps[pairs_of_none.pairs].shape == (0, 2)


def test_prompts_end_where_the_last_response_starts() -> None:
    """Loss spans [2, 4) and [5, 7): the prompt is tokens 0 to 4."""
    batch = collate_prompts(unpacked([chat([1, 2, 3, 4, 5, 6, 7], [2, 4, 5, 7])]))
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5]]
    assert batch.num_loss_tokens == 0
