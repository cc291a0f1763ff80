"""The promises of docs/data.md, sentence by sentence: small files through the data module."""

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer

from smollit.data import ChatDataModule, PreferenceDataModule, UltraChatDataModule
from smollit.data.sources.mixture import Part
from tests.data.conftest import END, Row, assistant, chats, make, pair_texts, ready, spans, user, whole
from tests.data.sources.conftest import write


def responses(module: ChatDataModule, key: str = "train") -> list[str]:
    """The only loss span of each chat, without its end."""
    return [text.removesuffix(END) for (text,) in spans(module, key)]


def one_chat(tmp_path: Path, messages: list[Row], **options: Any) -> ChatDataModule:
    return ready(tmp_path, write(tmp_path / "one.jsonl", [{"messages": messages}]), **options)


def pairs(tmp_path: Path, rows: list[Row], **options: Any) -> ChatDataModule:
    return ready(tmp_path, write(tmp_path / "pairs.jsonl", rows), PreferenceDataModule, **options)


# ---- where rows come from


# promise: mixtures
@pytest.mark.parametrize("packing", ["off", "on"])
def test_weights_and_caps_of_a_mixture(tmp_path: Path, packing: str) -> None:
    """8 rows at 0.5, 3 at 2, and at most 2 of 5: 4 + 6 + 2 per epoch; the halves of two epochs are all 8."""
    parts = [
        Part(write(tmp_path / "half.jsonl", chats(8, "h")), weight=0.5),
        Part(write(tmp_path / "twice.jsonl", chats(3, "t")), weight=2),
        Part(write(tmp_path / "few.jsonl", chats(5, "f")), max_rows=2),
    ]
    module = ready(tmp_path, parts, longest_first=False, packing=packing)
    halves: list[int] = []
    for epoch in range(2):
        module.position.begin(epoch)
        seen = [row for batch in module.train_dataloader() for row in batch.example_ids.tolist()]
        assert len(seen) == 12
        assert [sorted(row for row in seen if 8 <= row < 11)] == [[8, 8, 9, 9, 10, 10]]
        assert len({row for row in seen if row >= 11}) == 2
        halves += [row for row in seen if row < 8]
    assert sorted(halves) == list(range(8))


def test_named_validation_sets_have_a_loader_each(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Their own splits and columns; their reports are logged under their names."""
    caplog.set_level(logging.INFO)
    one = write(tmp_path / "one.jsonl", chats(4))
    other = write(tmp_path / "other.jsonl", [{"dialog": chats(1)[0]["messages"]}] * 2)
    module = ready(
        tmp_path, one, train_split="x[:3]",
        val_sets={"mine": Part(one, split="x[3:]"), "theirs": Part(other, columns={"messages": "dialog"})},
    )  # fmt: skip
    assert (responses(module, "val/mine"), responses(module, "val/theirs")) == (["a3"], ["a0", "a0"])
    assert module.val_names == ("mine", "theirs")
    assert "mine: 1 of 1 rows" in caplog.text and "theirs: 2 of 2 rows" in caplog.text
    assert [sum(batch.num_examples for batch in loader) for loader in module.val_dataloader()] == [1, 2]


def test_validation_takes_all_rows_of_its_split_of_each_part(tmp_path: Path) -> None:
    """A part's own split, weight and cap are for training: 2 of 3 rows there, and the other 3 to validate."""
    part = Part(write(tmp_path / "rows.jsonl", chats(6)), split="x[:3]", weight=2, max_rows=2)
    module = ready(tmp_path, [part], val_split="x[3:]")
    assert len(responses(module)) == 2 and set(responses(module)) < {"a0", "a1", "a2"}
    assert responses(module, "val") == ["a3", "a4", "a5"]


# case: data-13
def test_streamed_rows_come_once_per_epoch(tmp_path: Path) -> None:
    """10 rows of which one is bad: 9 over 2 workers, each once, in another order in the second epoch."""
    rows = chats(10)
    rows[4] = {"messages": [user("q")]}
    dataset = write(tmp_path / "rows.jsonl", rows)
    module = ready(tmp_path, dataset, streaming=True, num_workers=2, train_batch_size=2, shuffle_buffer=4)
    epochs = []
    for epoch in range(2):
        module.position.begin(epoch)
        epochs.append([row for batch in module.train_dataloader() for row in batch.example_ids.tolist()])
    assert [sorted(rows) for rows in epochs] == [[0, 1, 2, 3, 5, 6, 7, 8, 9]] * 2
    assert epochs[0] != epochs[1]
    assert not (tmp_path / "cache").exists() or not list((tmp_path / "cache").glob("*/examples"))


def test_what_streaming_can_not_do_is_refused(tmp_path: Path) -> None:
    dataset = write(tmp_path / "rows.jsonl", chats(4))
    with pytest.raises(ValueError, match=r"`data\.packing: on` needs all lengths in advance"):
        make(tmp_path, dataset, streaming=True, packing="on")
    with pytest.raises(ValueError, match=r"give row numbers, as \[1000:\]"):
        list(ready(tmp_path, dataset, streaming=True, train_split="x[50%:]").train_dataloader())
    module = ready(tmp_path, dataset, streaming=True)
    module.trainer = Trainer(max_epochs=1, logger=False, enable_checkpointing=False, accelerator="cpu")
    with pytest.raises(ValueError, match=r"set `trainer\.max_steps`"):
        module.train_dataloader()


def test_a_streams_cap_takes_the_first_rows(tmp_path: Path) -> None:
    part = Part(write(tmp_path / "rows.jsonl", chats(9)), split="x[2:]", max_rows=3)
    batches = ready(tmp_path, [part], streaming=True, shuffle=False).train_dataloader()
    decode = make(tmp_path, "x").template.tokenizer.decode
    assert [decode(batch.labels[batch.labels >= 0]) for batch in batches] == [f"a2{END}a3{END}a4{END}"]


# ---- what rows may look like


Q, A = [user("q")], [assistant("a")]


def test_columns_formats_and_a_system_column(tmp_path: Path) -> None:
    """`columns` names columns that are called otherwise; `format` insists; `system` goes first."""
    row = {"dialog": Q + A, "text": "t", "system": "s"}
    dataset = write(tmp_path / "one.jsonl", [row])
    assert whole(ready(tmp_path, dataset, format="text")) == ["t<|endoftext|>"]
    module = ready(tmp_path, dataset, columns={"messages": "dialog"})
    assert whole(module) == [f"<|im_start|>system\ns{END}\n<|im_start|>user\nq{END}\n<|im_start|>assistant\na{END}"]
    with pytest.raises(ValueError, match="the columns dialog, text, system"):
        ready(tmp_path, dataset, format="alpaca")


def test_other_roles_must_be_listed(tmp_path: Path) -> None:
    """As context; or in the loss, if `train_on` lists them."""
    chat = [user("q"), {"role": "critic", "content": "hm"}, assistant("a")]
    with pytest.raises(ValueError, match=r"`data\.extra_roles` can list more"):
        one_chat(tmp_path, chat)
    assert spans(one_chat(tmp_path, chat, extra_roles=["critic"])) == [["a" + END]]
    module = one_chat(tmp_path, chat, extra_roles=["critic"], train_on=["critic", "assistant"])
    assert spans(module) == [["hm" + END, "a" + END]]


def test_roles_that_are_listed_but_not_trained_are_explained(tmp_path: Path) -> None:
    """A typical mistake with roles such as Customer and Agent: nothing is in the loss; the error names `train_on`."""
    chat = [{"role": "Customer", "content": "q"}, {"role": "Agent", "content": "a"}]
    with pytest.raises(ValueError, match=r"(?s)no message counts in the loss.*What to do: .*change `data\.train_on`"):
        one_chat(tmp_path, chat, extra_roles=["Customer", "Agent"])
    assert spans(one_chat(tmp_path, chat, extra_roles=["Customer", "Agent"], train_on=["Agent"])) == [["a" + END]]


# case: template-10
def test_a_prompt_may_end_with_the_start_of_the_answer(tmp_path: Path) -> None:
    given = [*Q, assistant("It is ")]
    module = ready(tmp_path, write(tmp_path / "one.jsonl", [{"prompt": given, "completion": "a"}]))
    assert spans(module) == [["a" + END]]
    assert whole(module)[0].endswith(f"assistant\nIt is a{END}")
    (texts,) = pair_texts(pairs(tmp_path, [{"prompt": given, "chosen": "a", "rejected": "b"}]))
    assert texts == (f"<|im_start|>user\nq{END}\n<|im_start|>assistant\nIt is ", "a" + END, "b" + END)


def test_scores_drop_pairs(tmp_path: Path) -> None:
    """Gaps 3, 0, -2 and none: all stay; ties go; gaps below 1 go, and a pair without scores has none. Each is counted,
    with the numbers. Batches carry the gaps, if all pairs have one."""
    scores = [(8, 5), (4, 4), (1, 3), (None, None)]
    rows = [
        {"prompt": f"q{n}", "chosen": "a", "rejected": "b", "score_chosen": one, "score_rejected": other}
        for n, (one, other) in enumerate(scores)
    ]

    def gaps(**options: Any) -> list[float]:
        return list(pairs(tmp_path, rows, max_dropped_share=1.0, **options).examples["train"].column("score_gap"))

    assert gaps()[:3] == [3, 0, -2] and math.isnan(gaps()[3])
    assert gaps(score_ties="drop")[:2] == [3, -2]
    assert gaps(min_score_gap=1.0) == [3]
    report = pairs(tmp_path, rows, score_ties="drop", min_score_gap=1.0, max_dropped_share=1.0).reports["train"]
    assert report.dropped == {"tied scores": 1, "score gap too small": 1, "no scores": 1}
    said = "row 2: score_chosen - score_rejected is -2, and min_score_gap is 1"
    assert report.examples["score gap too small"] == [said]
    (batch,) = pairs(tmp_path, rows[:3], shuffle=False).train_dataloader()
    assert batch.score_gap.tolist() == [3, 0, -2]


# ---- length


# case: mask-06
# case: data-09
@pytest.mark.parametrize(
    ("truncate", "length", "in_loss"),
    [("right", 10, [4, 2]), ("left-turns", 7, [5]), ("drop", None, []), ("error", None, [])],
)
def test_long_chats(
    tmp_path: Path, bare: str, words: Any, truncate: str, length: int | None, in_loss: list[int]
) -> None:
    """Turns of 2, 4, 2 and 5 (13) beside a short chat, with room for 10: 2 + 4 + 2 + 2, or without the first two."""
    long = [user(words(2)), assistant(words(4)), user(words(2)), assistant(words(5))]
    rows = [{"messages": long}, {"messages": [user(words(1)), assistant(words(1))]}]
    dataset = write(tmp_path / "two.jsonl", rows)
    if truncate == "error":
        with pytest.raises(ValueError, match="13 tokens, and max_length is 10"):
            ready(tmp_path, dataset, max_length=10, truncate=truncate, chat_template=bare, max_dropped_share=1.0)
        return
    module = ready(tmp_path, dataset, max_length=10, truncate=truncate, chat_template=bare, max_dropped_share=1.0)
    report, (first, *others) = module.reports["train"], module.examples["train"].rows.to_list()
    if length is None:
        assert (report.kept, report.dropped, others) == (1, {"longer than max_length": 1}, [])
        return
    borders = first["spans"]
    assert [end - start for start, end in zip(borders[::2], borders[1::2], strict=True)] == in_loss
    assert (first["length"], report.kept, report.truncated) == (length, 2, 1)


# ---- bad rows and reports


def test_a_tenth_of_bad_rows_is_the_limit(tmp_path: Path) -> None:
    """1 of 10 passes; 2 of 19 do not."""
    bad = {"messages": [user("q"), assistant(None)]}
    module = ready(tmp_path, write(tmp_path / "ten.jsonl", [*chats(9), bad]))
    assert module.reports["train"].dropped == {"null content": 1}
    with pytest.raises(
        ValueError,
        match=r"(?s)2 of 19 rows of split train can't be used, and `data.max_dropped_share` is 0.1.*messages\[1\]",
    ):
        ready(tmp_path, write(tmp_path / "more.jsonl", [*chats(17), bad, bad]))


# case: F6
@pytest.mark.parametrize("streaming", [False, True])
def test_a_line_that_is_not_json_stops_the_run_with_file_and_line(tmp_path: Path, streaming: bool) -> None:
    """Of a stream, when it is reached."""
    good = "".join(json.dumps(row) + "\n" for row in chats(2))
    path = write(tmp_path / "rows.jsonl", good + "{oops}\n" + good)
    with pytest.raises(ValueError, match=r"rows\.jsonl:3: not JSON"):
        list(ready(tmp_path, path, max_dropped_share=1.0, streaming=streaming).train_dataloader())


def test_all_figures_are_in_data_report_json(tmp_path: Path) -> None:
    """A report for each split, in the run folder."""
    dataset = write(tmp_path / "rows.jsonl", [*chats(9), {"messages": []}])
    module = make(tmp_path, dataset, val_split="x[:4]")
    module.trainer = Trainer(
        default_root_dir=tmp_path / "run", logger=False, enable_checkpointing=False, accelerator="cpu"
    )
    module.prepare_data()
    module.setup("fit")
    said = json.loads((tmp_path / "run" / "data_report.json").read_text())
    assert [(name, said[name]["rows"], said[name]["kept"]) for name in said] == [("train", 10, 9), ("val", 4, 4)]
    assert said["train"]["dropped"] == {"empty conversation": 1}
    assert said["train"]["examples"] == {"empty conversation": ["row 9: messages is an empty list"]}


# ---- batches


# case: packing-02
# case: packing-05
def test_packing_keeps_every_example_whole_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """`on` packs; `auto` on a CPU says that it does not; the rows have at most `pack_length` positions."""
    dataset = write(tmp_path / "rows.jsonl", chats(20))
    with caplog.at_level(logging.INFO):
        module = ready(tmp_path, dataset, packing="on", pack_length=40, train_batch_size=2)
        batches = list(module.train_dataloader())
    assert "packing: on, 20 examples in" in caplog.text and "fill rate" in caplog.text
    assert sorted(row for batch in batches for row in batch.example_ids.tolist()) == list(range(20))
    assert all(batch.input_ids.shape[0] <= 2 and batch.input_ids.shape[1] <= 40 for batch in batches)
    assert len(batches) < 10


def test_longest_first_and_the_limit_of_tokens(tmp_path: Path, words: Any) -> None:
    """The first batch has the longest row; no batch has more than 100 positions, with padding."""
    rows = [{"messages": [user("q"), assistant(words(2 + 3 * n))]} for n in range(16)]
    module = ready(tmp_path, write(tmp_path / "rows.jsonl", rows), train_batch_size=4, max_batch_tokens=100)
    batches = list(module.train_dataloader())
    assert 15 in batches[0].example_ids.tolist()
    assert all(batch.input_ids.numel() <= 100 for batch in batches)
    assert sorted(row for batch in batches for row in batch.example_ids.tolist()) == list(range(16))


def test_val_split_null_validates_on_nothing_and_the_published_defaults_stand() -> None:
    module = UltraChatDataModule()
    assert module.splits.train == "train_sft" and module.splits.val == "test_sft"
    assert [part.dataset for part in module.splits.dataset] == ["HuggingFaceH4/ultrachat_200k"]
