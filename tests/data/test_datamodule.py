"""UltraChatDataModule and UltraFeedbackDataModule: from a file to batches, once tokenized, the same every time."""

import json
import logging
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from smollit.batch import Batch
from smollit.data import ChatDataModule, Part, UltraChatDataModule, UltraFeedbackDataModule
from tests.conftest import SAMPLES
from tests.data import conftest
from tests.data.conftest import chats
from tests.data.sources.conftest import write

SPLITS = {"train_split": "all[:75%]", "val_split": "all[75%:]", "train_batch_size": 2, "val_batch_size": 2}


def make(tmp_path: Path, dataset: str | list[Part], **options: Any) -> ChatDataModule:
    return conftest.make(tmp_path, dataset, **SPLITS | {"kind": UltraChatDataModule} | options)


def ready(tmp_path: Path, dataset: str | list[Part], **options: Any) -> ChatDataModule:
    return conftest.ready(tmp_path, dataset, **SPLITS | {"kind": UltraChatDataModule} | options)


def seen(loader: Any) -> list[list[int]]:
    return [batch.example_ids.tolist() for batch in loader]


# ---- from rows to batches


def test_chats_become_batches(tmp_path: Path) -> None:
    """8 rows: 6 to train, 2 to validate in one batch, whose loss tokens are the two responses with their ends."""
    module = ready(tmp_path, write(tmp_path / "mine.jsonl", chats(8)))
    assert sorted(chain(*seen(module.train_dataloader()))) == list(range(6))
    (batch,) = module.val_dataloader()
    trained = batch.labels[batch.labels >= 0]
    assert module.template.tokenizer.decode(trained) == "a6<|im_end|>a7<|im_end|>"


@pytest.mark.shared
@pytest.mark.slow
def test_published_rows_become_batches(tmp_path: Path, shared: Path) -> None:
    """The real columns, splits, slices and tokenizer, with the model's own template."""
    for kind, folder, split in (
        (UltraChatDataModule, "ultrachat_200k", "_sft"),
        (UltraFeedbackDataModule, "ultrafeedback_binarized", "_prefs"),
    ):
        module = ready(
            tmp_path,
            str(shared / "data" / folder),
            kind=kind,
            train_split=f"train{split}[:1%]",
            val_split=f"test{split}[:5%]",
            tokenizer_name=str(shared / "models" / "smollm2-tokenizer" / "instruct-135M"),
            chat_template="auto",
            max_length=2048,
        )
        batch = next(iter(module.train_dataloader()))
        assert batch.num_examples == 2
        assert batch.num_loss_tokens > 0


def test_prompts_for_prediction_end_with_the_header(tmp_path: Path) -> None:
    module = make(tmp_path, write(tmp_path / "mine.jsonl", chats(4)))
    module.prepare_data()
    module.setup("predict")
    (batch,) = module.predict_dataloader()
    assert module.template.tokenizer.decode(batch.input_ids[0]).endswith("q3<|im_end|>\n<|im_start|>assistant\n")
    assert batch.num_loss_tokens == 0


# ---- several data sets


def test_parts_of_different_formats_are_one_epoch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """3 chats, then 2 of ShareGPT: rows 0 to 4, each with the response of its file, and a format logged for each."""
    others = [{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": f"other {n}"}]}
              for n in range(2)]  # fmt: skip
    parts = [Part(write(tmp_path / "one.jsonl", chats(3))), Part(write(tmp_path / "two.jsonl", others))]
    with caplog.at_level(logging.INFO):
        module = ready(tmp_path, parts, train_split="all", val_split=None)
    decode = module.template.tokenizer.decode
    answers = {
        number: decode(targets[targets >= 0]).removesuffix("<|im_end|>")
        for batch in module.train_dataloader()
        for number, targets in zip(batch.example_ids.tolist(), batch.labels, strict=True)
    }
    assert answers == {0: "a0", 1: "a1", 2: "a2", 3: "other 0", 4: "other 1"}
    assert [name.rpartition("/")[2] for name in module.reports] == ["one.jsonl", "two.jsonl"]
    assert "all of " in caplog.text and "ShareGPT: `conversations`" in caplog.text


def test_row_numbers_run_on_behind_bad_rows(tmp_path: Path) -> None:
    """Row 1 of the first part's 3 is bad: the second part begins with row 3, not 2."""
    rows = [chats(3)[0], {"messages": []}, chats(3)[2]]
    parts = [Part(write(tmp_path / "one.jsonl", rows)), Part(write(tmp_path / "two.jsonl", chats(2)))]
    module = ready(tmp_path, parts, train_split="all", val_split=None, max_dropped_share=0.5)
    assert sorted(chain(*seen(module.train_dataloader()))) == [0, 2, 3, 4]


def test_one_named_set_is_still_named(tmp_path: Path) -> None:
    """One loader, as without names; what it counts goes to `val/only`."""
    dataset = write(tmp_path / "mine.jsonl", chats(8))
    module = ready(tmp_path, dataset, train_split="all[3:]", val_sets={"only": Part(dataset, "all[:3]")})
    assert seen(module.val_dataloader()) == [[0, 1], [2]]
    assert module.val_names == ("only",)


def test_a_named_set_of_the_training_rows_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = write(tmp_path / "mine.jsonl", chats(8))
    ready(tmp_path, dataset, train_split="all", val_sets={"same": Part(dataset, "all")})
    assert "validation uses the training rows" in caplog.text


# ---- streams


# case: data-13
def test_a_stream_gives_the_batches_of_its_files(tmp_path: Path) -> None:
    """8 rows, none shuffled: nothing of them is put into the cache, and validation is."""
    dataset = write(tmp_path / "mine.jsonl", chats(8))
    options = {"streaming": True, "shuffle": False, "train_split": "all[:6]", "val_split": "all[6:]"}
    module = ready(tmp_path, dataset, **options)
    assert seen(module.train_dataloader()) == [[0, 1], [2, 3], [4, 5]]
    assert "train" not in module.examples
    assert len([path for path in (tmp_path / "cache").iterdir() if path.is_dir()]) == 1


# ---- tokenized once


# promise: second-start
# case: data-01
# case: data-12
def test_a_second_run_tokenizes_nothing(tmp_path: Path) -> None:
    """2 splits: 2 folders, which the second run leaves as they are; 3 when a split is new."""
    dataset = write(tmp_path / "mine.jsonl", chats(8))

    def folders(**options: Any) -> dict[str, int]:
        ready(tmp_path, dataset, **options)
        return {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir() if path.is_dir()}

    first = folders()
    assert len(first) == 2 and folders() == first
    more = folders(val_split="all[80%:]")
    assert len(more) == 3 and first.items() < more.items()


# case: data-12
def test_setup_builds_nothing(tmp_path: Path) -> None:
    """setup runs on every rank: only prepare_data, which Lightning calls once per node, may tokenize."""
    module = make(tmp_path, write(tmp_path / "mine.jsonl", chats(4)))
    with pytest.raises(ValueError, match=r"call prepare_data\(\) before setup\(\)"):
        module.setup("fit")
    assert not (tmp_path / "cache").exists()


class Watcher(LightningModule):
    """Writes which rows each rank saw."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.rows: list[int] = []

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.rows += batch.example_ids.tolist()

    def on_validation_epoch_end(self) -> None:
        (self.folder / f"rank{self.global_rank}").write_text(json.dumps(self.rows))


# case: data-12
# case: data-08
def test_two_ranks_tokenize_once_and_share_the_rows(tmp_path: Path) -> None:
    """3 validation rows on 2 ranks, 1 at a time: one folder in the cache, and each row on one rank."""
    path = write(tmp_path / "mine.jsonl", chats(3))
    module = make(tmp_path, path, train_split="all", val_split="all", val_batch_size=1)
    trainer = Trainer(
        accelerator="cpu", devices=2, strategy="ddp_fork", logger=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, enable_checkpointing=False,
        default_root_dir=str(tmp_path),
    )  # fmt: skip
    trainer.validate(Watcher(tmp_path), module, verbose=False)
    ranks = [json.loads((tmp_path / f"rank{rank}").read_text()) for rank in range(2)]
    assert len([path for path in (tmp_path / "cache").iterdir() if path.is_dir()]) == 1
    assert ranks == [[0, 2], [1]]


# ---- the same every time


# case: data-13
def test_workers_change_nothing(tmp_path: Path) -> None:
    """10 rows, 2 workers: the batches of no workers, each row once, also in the second epoch."""
    dataset = write(tmp_path / "mine.jsonl", chats(10))
    alone, helped = (
        ready(tmp_path, dataset, train_split="all", val_split=None, num_workers=workers).train_dataloader()
        for workers in (0, 2)
    )
    for _ in range(2):
        for one, other in zip(alone, helped, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one[:6], other[:6], strict=True))
    assert sorted(chain(*seen(helped))) == list(range(10))


@pytest.mark.parametrize("workers", [0, 2])
def test_loading_leaves_the_global_random_state_alone(tmp_path: Path, workers: int) -> None:
    """A resumed run must draw the numbers that an unbroken one draws."""
    module = ready(tmp_path, write(tmp_path / "mine.jsonl", chats(8)), num_workers=workers)
    before = torch.get_rng_state()
    for loader in (module.train_dataloader(), module.val_dataloader()):
        for _ in range(2):
            list(loader)
    assert torch.equal(before, torch.get_rng_state())


def test_epochs_have_orders_and_a_resumed_one_has_the_rest(tmp_path: Path) -> None:
    """6 rows in batches of 2: after 2 rows of epoch 1, a new module continues with the other 4, in order."""
    dataset = write(tmp_path / "mine.jsonl", chats(8))
    module, resumed = ready(tmp_path, dataset, seed=3), ready(tmp_path, dataset, seed=3)
    first = seen(module.train_dataloader())
    at = module.state_dict()
    module.load_state_dict(at | {"epoch": 1, "rows": 0})
    second = seen(module.train_dataloader())
    resumed.load_state_dict(at | {"epoch": 1, "rows": 2})
    assert first != second
    assert seen(resumed.train_dataloader()) == second[1:]
    assert seen(ready(tmp_path, dataset, shuffle=False).train_dataloader()) == [[0, 1], [2, 3], [4, 5]]


# ---- what is logged, and what is refused


# case: mask-08
# case: data-09
def test_every_split_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        ready(tmp_path, write(tmp_path / "mine.jsonl", chats(8)))
    for split, rows in (("all[:75%]", 6), ("all[75%:]", 2)):
        assert f"{split}: {rows} of {rows} rows, loss tokens" in caplog.text


# case: template-04
def test_a_default_template_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        ready(tmp_path, write(tmp_path / "mine.jsonl", chats(8)), chat_template="auto")
    assert "the tokenizer has no chat template: ChatML is used" in caplog.text


# case: mask-04
def test_an_end_other_than_eos_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        ready(tmp_path, write(tmp_path / "mine.jsonl", chats(8)))
    assert caplog.text.count("assistant turns end with <|im_end|>, not with the tokenizer's eos <|endoftext|>") == 1


# case: template-08
def test_split_markers_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ready(tmp_path, write(tmp_path / "mine.jsonl", chats(8)), chat_template="article")
    assert "markers </s>, <|assistant|>, <|user|> are several tokens each" in caplog.text


def test_validating_on_the_training_rows_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One file with the default splits: any name means the whole file."""
    dataset = write(tmp_path / "mine.jsonl", chats(4))
    ready(tmp_path, dataset)
    assert "validation uses the training rows" not in caplog.text
    ready(tmp_path, dataset, train_split="train_sft", val_split="test_sft")
    assert "validation uses the training rows" in caplog.text
    assert "train[:95%]" in caplog.text


@pytest.mark.parametrize("kind", [UltraChatDataModule, UltraFeedbackDataModule])
def test_data_of_the_other_kind_is_refused_before_it_is_tokenised(tmp_path: Path, kind: type[ChatDataModule]) -> None:
    rows: list[dict[str, Any]] = [{"prompt": "q", "chosen": "a", "rejected": "b"}] * 4
    dataset = write(tmp_path / "mine.jsonl", rows if kind is UltraChatDataModule else chats(4))
    with pytest.raises(ValueError, match=r"split all\[:75%\] of .*mine\.jsonl has the columns"):
        ready(tmp_path, dataset, kind=kind)
    assert not (tmp_path / "cache").exists()


# promise: identical-pairs
@pytest.mark.parametrize("split", ["train_split", "val_split"])
def test_equal_pairs_are_refused_in_any_split(tmp_path: Path, split: str) -> None:
    """`all[:4]` are the equal pairs, `all[4:]` the real ones."""
    equal = [{"prompt": f"q{n}", "chosen": "a", "rejected": "a"} for n in range(4)]
    real = [{"prompt": f"q{n}", "chosen": "a", "rejected": "b"} for n in range(4)]
    splits = {"train_split": "all[4:]", "val_split": "all[4:6]"} | {split: "all[:4]"}
    with pytest.raises(ValueError, match=r"in all 4 pairs of split all\[:4\], .* ln 2 = 0.6931"):
        ready(tmp_path, write(tmp_path / "mine.jsonl", equal + real), kind=UltraFeedbackDataModule, **splits)


# case: template-04
def test_preferences_need_a_template(tmp_path: Path) -> None:
    module = make(tmp_path, str(SAMPLES / "ultrafeedback"), kind=UltraFeedbackDataModule, chat_template="auto")
    with pytest.raises(ValueError, match="the tokenizer has no chat template: start from a folder"):
        module.prepare_data()


# case: mask-02
def test_a_run_without_trainable_rows_never_starts(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"all 6 rows of split .*\n.*no loss tokens"):
        ready(tmp_path, write(tmp_path / "mine.jsonl", chats(8)), max_length=4, max_dropped_share=1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 0}, "`data.max_length` must be at least 1, got 0"),
        ({"train_batch_size": 0}, "`data.train_batch_size` must be at least 1"),
        ({"num_workers": -1}, "`data.num_workers` must be at least 0"),
        ({"num_proc": 0}, "`data.num_proc` must be at least 1"),
        ({"max_dropped_share": 2}, "`data.max_dropped_share` must be between 0 and 1"),
    ],
)
def test_options_out_of_range_are_named(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(tmp_path, "x", **options)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("org/none", r"could not load the tokenizer .*set `data.tokenizer_name` to a local folder"),
        ("runs/none/export", r"`tokenizer_name` is the folder runs/none/export, which does not exist"),
    ],
)
def test_a_tokenizer_that_is_not_there_gives_one_sentence_with_a_way_out(
    tmp_path: Path, name: str, message: str
) -> None:
    module = make(tmp_path, write(tmp_path / "mine.jsonl", chats(4)), tokenizer_name=name)
    with pytest.raises(ValueError, match=message):
        module.prepare_data()


def test_a_missing_split_to_test_is_named(tmp_path: Path) -> None:
    module = ready(tmp_path, write(tmp_path / "mine.jsonl", chats(4)), val_split=None)
    assert module.val_dataloader() == []
    with pytest.raises(ValueError, match=r"there is no split to test: set `data\.test_split`"):
        module.test_dataloader()
