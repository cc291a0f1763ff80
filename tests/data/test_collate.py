"""Examples -> Batch: the layout of rows, and padding known from lengths."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from smollit.batch import CHOSEN, IGNORE, PADDING, REJECTED, SHARED
from smollit.data.batching.collate import chat_row, collate_chats, collate_pairs, collate_prompts, one_per_row, pair_row

ids = st.lists(st.integers(0, 99), min_size=1, max_size=6)


def chat(tokens: list[int], spans: list[int], row: int = 0) -> dict:
    return {"input_ids": tokens, "spans": spans, "row": row}


# case: mask-01
def test_a_pad_id_inside_the_text_is_no_padding() -> None:
    """[1 5 6 2] and [1 5 2], all trained: 3 and 2 targets, both ending with 2; only what was appended is padding."""
    batch = collate_chats(one_per_row([chat([1, 5, 6, 2], [1, 4]), chat([1, 5, 2], [1, 3])]))
    assert batch.targets.tolist() == [[5, 6, 2], [5, 2, IGNORE]]
    assert batch.document.tolist() == [[0, 0, 0], [1, 1, PADDING]]


# case: mask-01
def test_turn_ends_inside_a_chat_are_attended() -> None:
    """ids 1 9 2 1 8 2 beside a longer row: 5 real positions, although two of them hold the pad id 2."""
    batch = collate_chats(one_per_row([chat([1, 9, 2, 1, 8, 2], [4, 6]), chat([1, 9, 2, 1, 8, 7, 7, 2], [4, 8])]))
    assert batch.document[0].tolist() == [0] * 5 + [PADDING] * 2
    assert batch.input_ids[0, :5].tolist() == [1, 9, 2, 1, 8]
    assert batch.targets[0].tolist() == [IGNORE, IGNORE, IGNORE, 8, 2, IGNORE, IGNORE]


# case: metrics-12
def test_targets_are_counted_after_the_shift() -> None:
    """Labels 7 8 -100 9: token 0 has no prefix, so 8 and 9 are targets: 2, not 3."""
    row = chat_row([7, 8, 3, 9], [1, 2, 3, 4])
    assert row.targets == [8, IGNORE, 9]
    batch = collate_chats(one_per_row([chat([7, 8, 3, 9], [1, 2, 3, 4])]))
    assert batch.num_targets == 2
    assert batch.trained.tolist() == [0, 2]


# case: data-15
def test_every_field_is_padded_to_one_width() -> None:
    """Rows of 9 and 2 positions, multiple of 8: ceil(9 / 8) * 8 = 16; real positions stay 9 and 2."""
    batch = collate_chats(one_per_row([chat(list(range(10)), [1, 10]), chat([1, 2, 3], [1, 3])]), pad_to_multiple_of=8)
    assert {field.shape for field in batch[:5]} == {torch.Size([2, 16])}
    assert (batch.document != PADDING).sum(1).tolist() == [9, 2]
    assert (batch.targets != IGNORE).sum(1).tolist() == [9, 2]
    assert batch.num_tokens == 11


# case: data-15
def test_a_wider_padding_changes_no_real_position() -> None:
    examples = [chat([5, 6, 7], [1, 3]), chat([8, 9], [1, 2])]
    narrow, wide = collate_chats(one_per_row(examples)), collate_chats(one_per_row(examples), pad_to_multiple_of=64)
    for one, other in zip(narrow[:5], wide[:5], strict=True):
        assert torch.equal(one, other[:, :2])
    assert (wide.document[:, 2:] == PADDING).all()
    assert (wide.targets[:, 2:] == IGNORE).all()


# case: dpo-loss-09
def test_a_pair_has_targets_for_its_answers_only() -> None:
    """Prompt 3 ids, chosen 5 6 2, rejected 7 2: positions 2 shared + 3 + 2, targets exactly the answers."""
    row = pair_row([11, 12, 13], [5, 6, 2], [7, 2])
    assert row.input_ids == [11, 12, 13, 5, 6, 13, 7]
    assert row.targets == [IGNORE, IGNORE, 5, 6, 2, 7, 2]
    assert row.position_ids == [0, 1, 2, 3, 4, 2, 3]
    assert row.branch == [SHARED, SHARED, CHOSEN, CHOSEN, CHOSEN, REJECTED, REJECTED]


# case: dpo-loss-09
@given(prompt=ids, chosen=ids, rejected=ids)
def test_each_branch_reads_out_as_its_own_sequence(prompt: list[int], chosen: list[int], rejected: list[int]) -> None:
    """Shared + branch = the plain row of prompt + answer, shifted by one, with the prompt untrained."""
    row = pair_row(prompt, chosen, rejected)
    for number, answer in ((CHOSEN, chosen), (REJECTED, rejected)):
        seen = [index for index, branch in enumerate(row.branch) if branch in (SHARED, number)]
        plain = prompt + answer
        assert [row.input_ids[index] for index in seen] == plain[:-1]
        assert [row.position_ids[index] for index in seen] == list(range(len(plain) - 1))
        labels = [IGNORE] * (len(prompt) - 1) + answer
        assert [row.targets[index] for index in seen] == labels
    assert {len(field) for field in row[:4]} == {row.layout.length}
    assert row.layout == (len(prompt) - 1, len(chosen), len(rejected))


@given(prompt=ids, chosen=ids, rejected=ids)
def test_collating_leaves_the_example_as_it_was(prompt: list[int], chosen: list[int], rejected: list[int]) -> None:
    before = (list(prompt), list(chosen), list(rejected))
    pair_row(prompt, chosen, rejected)
    assert before == (prompt, chosen, rejected)


# case: dpo-loss-08
def test_turn_ends_in_a_pair_are_attended() -> None:
    """Id 2 ends two earlier turns and both answers: none of these positions is padding."""
    example = {"prompt_ids": [1, 5, 2, 1, 6, 2, 1], "chosen_ids": [7, 2], "rejected_ids": [8, 9, 2], "row": 4}
    batch = collate_pairs(one_per_row([example]))
    assert (batch.document == 0).all()
    assert not batch.causal
    assert batch.example_ids.tolist() == [4]


def test_no_rows_give_one_row_of_padding() -> None:
    """A rank without rows at the end of an epoch: 0 examples, 0 targets, 0 tokens."""
    for collate in (collate_chats, collate_pairs, collate_prompts):
        batch = collate([])
        assert (batch.num_examples, batch.num_tokens, batch.num_targets) == (0, 0, 0)
        assert batch.input_ids.shape == (1, 1)
        assert batch.layout == ()


def test_prompts_end_where_the_last_answer_starts() -> None:
    """Spans [2, 4) and [5, 7): the prompt is tokens 0 to 4."""
    batch = collate_prompts(one_per_row([chat([1, 2, 3, 4, 5, 6, 7], [2, 4, 5, 7])]))
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5]]
    assert batch.num_targets == 0


# ---- several examples in a row


# case: packing-03
def test_a_packed_row_is_its_examples_one_behind_the_other() -> None:
    """Chats of 4 and 3 tokens in one row, one of 2 in the next: ids, targets, places and documents together."""
    examples = [chat([5, 6, 7, 8], [1, 4], 10), chat([1, 2, 3], [2, 3], 11), chat([8, 9], [1, 2], 12)]
    batch = collate_chats([examples[:2], examples[2:]])
    assert batch.input_ids.tolist() == [[5, 6, 7, 1, 2], [8, 0, 0, 0, 0]]
    assert batch.targets.tolist() == [[6, 7, 8, IGNORE, 3], [9] + [IGNORE] * 4]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1], [0] * 5]
    assert batch.document.tolist() == [[0, 0, 0, 1, 1], [2] + [PADDING] * 4]
    assert batch.trained.tolist() == [0, 1, 2, 4, 5]
    assert batch.example_ids.tolist() == [10, 11, 12]
    assert batch.layout == (((3, 0, 0), (2, 0, 0)), ((1, 0, 0),))
    assert not batch.causal
    assert collate_chats(one_per_row(examples)).causal


pairs = st.fixed_dictionaries({"prompt_ids": ids, "chosen_ids": ids, "rejected_ids": ids, "row": st.integers(0, 99)})


# case: packing-01
@given(rows=st.lists(st.lists(pairs, min_size=1, max_size=3), min_size=1, max_size=3), multiple=st.integers(1, 9))
def test_the_layout_says_what_the_tensors_say(rows: list[list[dict]], multiple: int) -> None:
    """Documents, branches, padding and counts, read off the layout and off the tensors; every pair as it is alone."""
    batch = collate_pairs(rows, multiple)
    numbers = iter(range(batch.num_examples))
    for row, layout in enumerate(batch.layout):
        documents = [number for part in layout for number in [next(numbers)] * part.length]
        branches = [branch for part in layout for branch, count in enumerate(part) for _ in range(count)]
        padding = batch.input_ids.shape[1] - len(documents)
        assert batch.document[row].tolist() == documents + [PADDING] * padding
        assert batch.branch[row].tolist() == branches + [SHARED] * padding
    assert batch.num_tokens == (batch.document != PADDING).sum()
    assert torch.equal(batch.trained, torch.nonzero(batch.targets.flatten() != IGNORE).flatten())
    answers = (2 * batch.document + batch.branch - 1).flatten()[batch.trained]
    assert batch.answer_lengths == torch.bincount(answers, minlength=2 * batch.num_examples).tolist()
    for number, pair in enumerate(pair for row in rows for pair in row):
        alone, there = collate_pairs([[pair]]), batch.document == number
        for field in ("input_ids", "targets", "position_ids", "branch"):
            assert torch.equal(getattr(batch, field)[there], getattr(alone, field)[0])


def test_scores_and_reference_values_go_with_their_pair() -> None:
    """Gaps 1.5, 1.0 and 0.5 in rows of two and one; gaps and reference values are there only if every pair has them."""
    pair = {"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [4], "row": 0}
    values = {"reference_chosen": -1.5, "reference_rejected": -2.5}
    one, two, three = (pair | {"score_gap": gap} | values for gap in (1.5, 1.0, 0.5))
    batch = collate_pairs([[one, two], [three]])
    assert batch.score_gap is not None
    assert batch.score_gap.tolist() == [1.5, 1.0, 0.5]
    assert collate_pairs([[one, pair]]).score_gap is None
    assert collate_pairs([[one, pair | {"score_gap": math.nan}]]).score_gap is None
    assert batch.reference_logps is not None
    assert batch.reference_logps.tolist() == [[-1.5, -2.5]] * 3
    assert collate_pairs([[pair | values, pair]]).reference_logps is None
    empty = collate_pairs([])
    assert empty.score_gap is not None
    assert empty.score_gap.shape == (0,)
    assert empty.reference_logps is not None
    assert empty.reference_logps.shape == (0, 2)
