"""UltraChatDataModule and UltraFeedbackDataModule: from a file to batches, once tokenised, the same every time."""

import json
import logging
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from smollit.batch import Batch
from smollit.data import (
    ChatDataModule,
    Part,
    PreferenceDataModule,
    UltraChatDataModule,
    UltraFeedbackDataModule,
)
from smollit.data.encoding import cache

TINY = Path(__file__).resolve().parents[2] / "smollit" / "models" / "tiny"
SAMPLES = Path(__file__).resolve().parents[2] / "smollit" / "data" / "samples"


@pytest.fixture(autouse=True)
def _datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def chats(count: int) -> list[dict[str, Any]]:
    return [
        {"messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": f"answer {n}"}]}
        for n in range(count)
    ]


def make(
    tmp_path: Path, dataset: str | list[Part], kind: type[ChatDataModule] = UltraChatDataModule, **options: Any
) -> ChatDataModule:
    options = {
        "train_split": "all[:75%]",
        "val_split": "all[75%:]",
        "tokenizer_name": str(TINY),
        "chat_template": "chatml",
        "max_length": 64,
        "train_batch_size": 2,
        "val_batch_size": 2,
        "cache_dir": str(tmp_path / "cache"),
    } | options
    return kind(dataset, **options)


def ready(tmp_path: Path, dataset: str | list[Part], **options: Any) -> ChatDataModule:
    module = make(tmp_path, dataset, **options)
    module.prepare_data()
    module.setup("fit")
    return module


def seen(loader: Any) -> list[list[int]]:
    return [batch.example_ids.tolist() for batch in loader]


# ---- from rows to batches


def test_chats_become_batches(tmp_path: Path) -> None:
    """8 rows: 6 to train, 2 to validate in one batch, whose targets are the two answers with their ends."""
    module = ready(tmp_path, write(tmp_path / "mine.jsonl", chats(8)))
    assert sorted(chain(*seen(module.train_dataloader()))) == list(range(6))
    (batch,) = module.val_dataloader()
    trained = batch.labels[batch.labels >= 0]
    assert module.template.tokenizer.decode(trained) == "answer 6<|im_end|>answer 7<|im_end|>"


def test_sample_pairs_become_batches(tmp_path: Path) -> None:
    module = ready(
        tmp_path,
        str(SAMPLES / "ultrafeedback"),
        kind=UltraFeedbackDataModule,
        train_split="test_prefs[:4]",
        val_split="test_prefs[4:6]",
        max_length=256,
    )
    batches = list(module.train_dataloader())
    assert [batch.num_examples for batch in batches] == [2, 2]
    assert {int(branch) for batch in batches for branch in batch.branch.unique()} == {0, 1, 2}


@pytest.mark.shared
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


# ---- every format, from a file to a batch


ASKED, ANSWERED = "What is it?", "A cat."
CHAT_FORMATS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "messages": ({"messages": [{"role": "user", "content": ASKED}, {"role": "assistant", "content": ANSWERED}]}, {},
                 "Messages: `messages` (role/content)"),
    "ShareGPT": ({"conversations": [{"from": "human", "value": ASKED}, {"from": "gpt", "value": ANSWERED}]}, {},
                 "ShareGPT: `conversations` (from/value or role/content); roles human -> user, gpt -> assistant"),
    "Alpaca": ({"instruction": ASKED, "input": "", "output": ANSWERED}, {},
               "Alpaca: `instruction` and `input` ask, `output` answers"),
    "prompt and completion": ({"prompt": ASKED, "completion": ANSWERED}, {},
                              "Prompt and completion: `prompt` is context, `completion` is trained"),
    "dialogue": ({"text": f"\n\nHuman: {ASKED}\n\nAssistant: {ANSWERED}"}, {}, "Human/Assistant dialogues: `text`"),
    "renamed": ({"dialog": [{"role": "user", "content": ASKED}, {"role": "assistant", "content": ANSWERED}]},
                {"columns": {"messages": "dialog"}}, "Messages: `dialog` (role/content)"),
    "named": ({"messages": [{"role": "user", "content": ASKED}, {"role": "assistant", "content": ANSWERED}],
               "text": "something else"}, {"format": "messages"}, "Messages: `messages` (role/content)"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHAT_FORMATS)
def test_each_format_of_chats_gives_the_same_batch(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One question and answer, written in seven ways: one rendered chat, and the answer with its end is trained.

    How the rows are read is said once per split.
    """
    row, options, said = CHAT_FORMATS[name]
    with caplog.at_level(logging.INFO):
        module = ready(tmp_path, write(tmp_path / "mine.jsonl", [row] * 4), **options)
    batch = next(iter(module.train_dataloader()))
    decode = module.template.tokenizer.decode
    assert decode(batch.input_ids[0]) == f"<|im_start|>user\n{ASKED}<|im_end|>\n<|im_start|>assistant\n{ANSWERED}"
    assert decode(batch.labels[0][batch.labels[0] >= 0]) == f"{ANSWERED}<|im_end|>"
    for split in ("all[:75%]", "all[75%:]"):
        assert caplog.text.count(f"{split}: {said}") == 1


def test_plain_text_is_trained_without_a_template(tmp_path: Path) -> None:
    """All tokens but the first have one before them, and the end of the text is trained too."""
    module = ready(tmp_path, write(tmp_path / "mine.jsonl", [{"text": "Cats sleep."}] * 4))
    batch = next(iter(module.train_dataloader()))
    decode = module.template.tokenizer.decode
    assert decode(batch.input_ids[0]) == "Cats sleep."
    first = decode(batch.input_ids[0, :1])
    assert first + decode(batch.labels[0]) == "Cats sleep.<|endoftext|>"


ASKING = {"role": "user", "content": ASKED}
PAIR_FORMATS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "texts": ({"prompt": ASKED, "chosen": ANSWERED, "rejected": "A dog."}, {}, "prompt from `prompt`"),
    "messages": ({"chosen": [ASKING, {"role": "assistant", "content": ANSWERED}],
                  "rejected": [ASKING, {"role": "assistant", "content": "A dog."}]}, {},
                 "prompt from their common turns"),
    "dialogues": ({"chosen": f"\n\nHuman: {ASKED}\n\nAssistant: {ANSWERED}",
                   "rejected": f"\n\nHuman: {ASKED}\n\nAssistant: A dog."}, {}, "Human/Assistant dialogues in pairs"),
    "renamed": ({"question": ASKED, "better": ANSWERED, "worse": "A dog."},
                {"columns": {"prompt": "question", "chosen": "better", "rejected": "worse"}},
                "Preference pairs: `better` over `worse`, prompt from `question`"),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIR_FORMATS)
def test_each_format_of_pairs_gives_the_same_batch(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The prompt up to where an answer starts once, and both answers with their ends as targets."""
    row, options, said = PAIR_FORMATS[name]
    with caplog.at_level(logging.INFO):
        module = ready(tmp_path, write(tmp_path / "mine.jsonl", [row] * 4), kind=PreferenceDataModule, **options)
    batch = next(iter(module.train_dataloader()))
    decode = module.template.tokenizer.decode
    chosen, rejected = (decode(batch.labels[0][batch.branch[0] == branch]) for branch in (1, 2))
    assert (chosen, rejected) == (f"{ANSWERED}<|im_end|>", "A dog.<|im_end|>")
    prompt = batch.input_ids[0][batch.branch[0] != 2][: batch.layout[0][0].shared + 1]
    assert decode(prompt) == f"<|im_start|>user\n{ASKED}<|im_end|>\n<|im_start|>assistant\n"
    assert caplog.text.count(said) == 2  # once per split


def test_scores_arrive_and_can_drop_pairs(tmp_path: Path) -> None:
    """Gaps 2, 1, 0 and -1: a least gap of 1 keeps two; `score_ties: drop` keeps all but the third."""
    rows = [
        {"prompt": f"q{gap}", "chosen": "a", "rejected": "b", "score_chosen": 5.0, "score_rejected": 5.0 - gap}
        for gap in (2, 1, 0, -1)
    ]
    dataset = write(tmp_path / "mine.jsonl", rows)
    for options, gaps in (
        ({}, [-1, 0, 1, 2]),
        ({"min_score_gap": 1.0}, [1, 2]),
        ({"score_ties": "drop"}, [-1, 1, 2]),
    ):
        module = ready(tmp_path, dataset, kind=PreferenceDataModule, train_split="all", val_split=None, **options)
        assert sorted(chain(*(batch.score_gap.tolist() for batch in module.train_dataloader()))) == gaps


# ---- several data sets


def test_parts_of_different_formats_are_one_epoch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """3 chats, then 2 of ShareGPT: rows 0 to 4, each with the answer of its own file, and a format said for each."""
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
    assert answers == {0: "answer 0", 1: "answer 1", 2: "answer 2", 3: "other 0", 4: "other 1"}
    assert [name.rpartition("/")[2] for name in module.reports] == ["one.jsonl", "two.jsonl"]
    assert "all of " in caplog.text and "ShareGPT: `conversations`" in caplog.text


def test_row_numbers_run_on_behind_bad_rows(tmp_path: Path) -> None:
    """Row 1 of the first part's 3 is bad: the second part begins with row 3, not 2."""
    rows = [chats(3)[0], {"messages": []}, chats(3)[2]]
    parts = [Part(write(tmp_path / "one.jsonl", rows)), Part(write(tmp_path / "two.jsonl", chats(2)))]
    module = ready(tmp_path, parts, train_split="all", val_split=None, max_dropped_share=0.5)
    assert sorted(chain(*seen(module.train_dataloader()))) == [0, 2, 3, 4]


def test_each_named_set_has_a_loader(tmp_path: Path) -> None:
    """In the order of their names in the config, not shuffled."""
    dataset = write(tmp_path / "mine.jsonl", chats(8))
    sets = {"last": Part(dataset, "all[7:]"), "first": Part(dataset, "all[:3]")}
    module = ready(tmp_path, dataset, train_split="all[3:7]", val_sets=sets)
    assert [seen(loader) for loader in module.val_dataloader()] == [[[0]], [[0, 1], [2]]]
    assert module.val_names == ("last", "first")


def test_one_named_set_is_still_named(tmp_path: Path) -> None:
    """One loader, as without names; what it counts goes to `val/only`."""
    dataset = write(tmp_path / "mine.jsonl", chats(8))
    module = ready(tmp_path, dataset, train_split="all[3:]", val_sets={"only": Part(dataset, "all[:3]")})
    assert seen(module.val_dataloader()) == [[0, 1], [2]]
    assert module.val_names == ("only",)


def test_a_named_set_of_the_training_rows_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = write(tmp_path / "mine.jsonl", chats(8))
    ready(tmp_path, dataset, train_split="all", val_sets={"same": Part(dataset, "all")})
    assert "validation uses the rows of training" in caplog.text


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


# ---- tokenised once


# case: data-12
def test_a_second_run_tokenises_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """2 splits: 2 builds in the first run, 0 in the second, 1 when a split is new."""
    builds, build = [], cache.build
    monkeypatch.setattr(cache, "build", lambda *args: builds.append(args) or build(*args))
    dataset = write(tmp_path / "mine.jsonl", chats(8))
    ready(tmp_path, dataset)
    assert len(builds) == 2
    ready(tmp_path, dataset)
    assert len(builds) == 2
    ready(tmp_path, dataset, val_split="all[80%:]")
    assert len(builds) == 3


# case: data-01
def test_another_length_is_not_served_from_the_cache(tmp_path: Path) -> None:
    """All 6 training rows are longer than 12 tokens, and none is longer than 64."""
    dataset = write(tmp_path / "mine.jsonl", chats(8))
    whole, short = (ready(tmp_path, dataset, max_length=length) for length in (64, 12))
    assert (whole.reports["train"].truncated, short.reports["train"].truncated) == (0, 6)
    assert max(short.examples["train"].column("length")) == 12 < min(whole.examples["train"].column("length"))


# case: data-12
def test_setup_builds_nothing(tmp_path: Path) -> None:
    """setup runs on every rank: only prepare_data, which Lightning calls once per node, may tokenise."""
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
def test_two_ranks_tokenise_once_and_share_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """3 validation rows on 2 ranks, 2 at a time: one build, and each row on one rank."""
    log, build = tmp_path / "builds", cache.build

    def count(*args: Any) -> None:
        with log.open("a") as file:
            file.write("build\n")
        build(*args)

    monkeypatch.setattr(cache, "build", count)
    path = write(tmp_path / "mine.jsonl", chats(3))
    module = make(tmp_path, path, train_split="all", val_split="all", val_batch_size=1)
    trainer = Trainer(
        accelerator="cpu", devices=2, strategy="ddp_fork", logger=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, enable_checkpointing=False,
        default_root_dir=str(tmp_path),
    )  # fmt: skip
    trainer.validate(Watcher(tmp_path), module, verbose=False)
    ranks = [json.loads((tmp_path / f"rank{rank}").read_text()) for rank in range(2)]
    assert log.read_text().splitlines() == ["build"]
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
    """6 rows in batches of 2: after 2 rows of epoch 1, a new module goes on with the other 4, in order."""
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


def test_a_rank_without_rows_gets_an_empty_batch(tmp_path: Path) -> None:
    """1 row on 2 ranks: rank 1 has one batch of nothing, so that it takes the same step."""
    module = ready(tmp_path, write(tmp_path / "mine.jsonl", chats(4)), train_split="all[:1]")
    loader = module.train_dataloader()
    sampler = module.sampler()
    sampler.rank, sampler.world_size = 1, 2
    (batch,) = loader
    assert (batch.num_examples, batch.num_loss_tokens) == (0, 0)


# ---- what is said, and what is refused


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
    assert caplog.text.count("answers end with <|im_end|>, not with the tokenizer's eos <|endoftext|>") == 1


# case: template-08
def test_split_markers_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ready(tmp_path, write(tmp_path / "mine.jsonl", chats(8)), chat_template="article")
    assert "markers </s>, <|assistant|>, <|user|> are several tokens each" in caplog.text


def test_validating_on_the_training_rows_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One file with the default splits: any name means the whole file."""
    dataset = write(tmp_path / "mine.jsonl", chats(4))
    ready(tmp_path, dataset)
    assert "validation uses the rows of training" not in caplog.text
    ready(tmp_path, dataset, train_split="train_sft", val_split="test_sft")
    assert "validation uses the rows of training" in caplog.text
    assert "train[:95%]" in caplog.text


@pytest.mark.parametrize("kind", [UltraChatDataModule, UltraFeedbackDataModule])
def test_data_of_the_other_kind_is_refused_before_it_is_tokenised(tmp_path: Path, kind: type[ChatDataModule]) -> None:
    rows: list[dict[str, Any]] = [{"prompt": "q", "chosen": "a", "rejected": "b"}] * 4
    dataset = write(tmp_path / "mine.jsonl", rows if kind is UltraChatDataModule else chats(4))
    with pytest.raises(ValueError, match=r"split all\[:75%\] of .*mine\.jsonl has the columns"):
        ready(tmp_path, dataset, kind=kind)
    assert not (tmp_path / "cache").exists()


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
