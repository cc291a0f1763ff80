"""ChatDataModule: tokenizer and template, the cache, the loaders. Subclasses name columns, splits and defaults."""

import logging
import os
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from datasets import Dataset
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch.utils.data import DataLoader

from smollit.batch import Batch
from smollit.data import cache
from smollit.data.chat import ChatTemplate, load_template
from smollit.data.collate import collate_chats, collate_pairs, collate_prompts
from smollit.data.encode import Encoder, Kind
from smollit.data.records import check_columns
from smollit.data.report import Report, check_report
from smollit.data.sampler import BatchSampler, Position
from smollit.data.source import load_source
from smollit.data.tokenizer import load_tokenizer

log = logging.getLogger(__name__)


class ChatDataModule(LightningDataModule):
    """Chats or preference pairs from the hub or from local files, tokenised once into an Arrow cache.

    Args:
        dataset: Hub id, a local folder laid out as on the hub, or a .jsonl, .json, .csv or .parquet file.
        train_split: Split to train on; a slice such as `train_sft[:5%]` takes a part.
        val_split: Split to validate on; null validates on nothing.
        test_split: Split of `test`; null takes `val_split`.
        predict_split: Split whose prompts `predict` answers; null takes `val_split`.
        tokenizer_name: Hub id or folder of the tokenizer; null takes the model's.
        chat_template: `auto` (the tokenizer's own, else ChatML), `chatml`, `article`, or the path of a Jinja file.
        max_length: Longest sequence in tokens; longer ones are cut on the right, and counted.
        train_batch_size: Chats or pairs per training batch and device.
        val_batch_size: Chats or pairs per batch and device in validation, test and prediction.
        shuffle: Whether each epoch has an order of its own.
        seed: Of the order of the training rows.
        num_workers: Processes that load batches; 0 loads in the main process.
        num_proc: Processes that tokenise.
        pad_to_multiple_of: Rows are padded to a multiple of this many tokens.
        max_dropped_share: Share of rows, 0 to 1, that may be dropped before the run is refused.
        cache_dir: Folder of the tokenised data; null takes $SMOLLIT_CACHE, else ~/.cache/smollit.
    """

    kind: ClassVar[Kind] = "chat"

    def __init__(
        self,
        dataset: str,
        train_split: str = "train",
        val_split: str | None = "test",
        test_split: str | None = None,
        predict_split: str | None = None,
        tokenizer_name: str | None = None,
        chat_template: str = "auto",
        max_length: int = 2048,
        train_batch_size: int = 8,
        val_batch_size: int = 8,
        shuffle: bool = True,
        seed: int = 0,
        num_workers: int = 0,
        num_proc: int | None = None,
        pad_to_multiple_of: int = 1,
        max_dropped_share: float = 0.1,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        _check_at_least(1, max_length=max_length, train_batch_size=train_batch_size, val_batch_size=val_batch_size)
        _check_at_least(1, pad_to_multiple_of=pad_to_multiple_of, num_proc=1 if num_proc is None else num_proc)
        _check_at_least(0, num_workers=num_workers)
        if not 0 <= max_dropped_share <= 1:
            raise ValueError(f"`data.max_dropped_share` must be between 0 and 1, got {max_dropped_share}")
        self.dataset = dataset
        self.splits = {
            "train": train_split,
            "val": val_split,
            "test": test_split or val_split,
            "predict": predict_split or val_split,
        }
        self.tokenizer_name = tokenizer_name
        self.chat_template = chat_template
        self.max_length = max_length
        self.train_batch_size = train_batch_size
        self.val_batch_size = val_batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.num_workers = num_workers
        self.num_proc = num_proc
        self.pad_to_multiple_of = pad_to_multiple_of
        self.max_dropped_share = max_dropped_share
        self.cache_dir = Path(cache_dir or os.environ.get("SMOLLIT_CACHE") or Path.home() / ".cache" / "smollit")
        self.position = Position()
        self.examples: dict[str, Dataset] = {}
        self.reports: dict[str, Report] = {}
        self._template: ChatTemplate | None = None

    # ---- what rows become

    @property
    def template(self) -> ChatTemplate:
        """The chat template with its tokenizer, loaded when first needed."""
        if self._template is None:
            if self.tokenizer_name is None:
                raise ValueError("`data.tokenizer_name` must be set when the data module is used without the CLI")
            tokenizer = load_tokenizer(self.tokenizer_name)
            self._template = load_template(tokenizer, self.chat_template, allow_default=self.kind == "chat")
            describe_template(self._template, is_default=self.chat_template == "auto" and not tokenizer.chat_template)
        return self._template

    def collate(self, examples: list[dict[str, Any]]) -> Batch:
        """Examples of this kind -> Batch."""
        return self._collate_function()(examples)

    # ---- Lightning's hooks

    def prepare_data(self) -> None:
        """Tokenise every split that is not in the cache; Lightning calls it once per node."""
        encoder = self._encoder()
        for split in dict.fromkeys(filter(None, self.splits.values())):
            source = load_source(self.dataset, split)
            check_columns(source.columns(), self.kind, f"split {split} of {self.dataset}")
            folder = self._folder(cache.cache_key(source, encoder))
            if not folder.exists():
                cache.build(source, encoder, folder, self.num_proc)

    def setup(self, stage: str) -> None:
        """Load the cached examples that the stage needs, and report on them once."""
        folders: dict[str, Path] = {}
        for name in {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}.get(stage, ("predict",)):
            split = self.splits[name]
            if split is None or name in self.examples:
                continue
            folder = self._folder(cache.cache_key(load_source(self.dataset, split), self._encoder()))
            if not folder.exists():
                raise ValueError(f"split {split} is not tokenised yet: call prepare_data() before setup()")
            self.examples[name], self.reports[name] = cache.load(folder)
            tell(self.reports[name], split)
            check_report(self.reports[name], split, self.max_dropped_share)
            folders[name] = folder
        if "train" in folders and folders["train"] == folders.get("val"):
            tell_same_rows(self.dataset)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Batches of the epoch and position that the run has reached."""
        return self._loader("train", self.train_batch_size, shuffle=self.shuffle, position=self.position)

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """Every validation example once."""
        return self._loader("val", self.val_batch_size) if "val" in self.examples else []

    def test_dataloader(self) -> DataLoader[Batch]:
        """Every test example once."""
        return self._loader("test", self.val_batch_size)

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Prompts, without targets."""
        return self._loader("predict", self.val_batch_size)

    # ---- helpers

    def _loader(
        self, name: str, batch_size: int, shuffle: bool = False, position: Position | None = None
    ) -> DataLoader[Batch]:
        if name not in self.examples:
            raise ValueError(f"there is no split to {name}: set `data.{name}_split`")
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        examples = self.examples[name]
        sampler = BatchSampler(len(examples), batch_size, shuffle, self.seed, rank, world_size, position)
        return DataLoader(
            examples,  # type: ignore[arg-type]  # a datasets.Dataset is a map-style data set
            batch_sampler=sampler,
            collate_fn=collate_prompts if name == "predict" else self._collate_function(),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            # Of its own: else each pass would draw from the global random state, and a resumed run would differ.
            generator=torch.Generator().manual_seed(self.seed),
        )

    def _collate_function(self) -> partial[Batch]:
        collate = collate_chats if self.kind == "chat" else collate_pairs
        return partial(collate, pad_to_multiple_of=self.pad_to_multiple_of)

    def _encoder(self) -> Encoder:
        return Encoder(self.template, self.kind, self.max_length)

    def _folder(self, key: str) -> Path:
        return self.cache_dir / key


@rank_zero_only
def describe_template(template: ChatTemplate, is_default: bool) -> None:
    """Say, once per run, what is not as a user may think."""
    if is_default:
        log.info("the tokenizer has no chat template: ChatML is used")
    eos = template.tokenizer.eos_token
    if eos and template.turn_end() and eos not in template.turn_end():
        log.info("answers end with %s, not with the tokenizer's eos %s: both stop generation", template.turn_end(), eos)
    split = template.split_markers()
    if split:
        log.warning(
            "the chat template's markers %s are several tokens each for this tokenizer: a model of this size"
            " learns them badly. `chat_template: chatml` has single tokens",
            ", ".join(split),
        )


@rank_zero_only
def tell(report: Report, split: str) -> None:
    """Log what became of a split's rows."""
    log.info(report.summary(split))
    for line in report.warnings(split):
        log.warning(line)


@rank_zero_only
def tell_same_rows(dataset: str) -> None:
    """Warn that validation says nothing about new rows."""
    log.warning(
        "validation uses the rows of training: of %s, set e.g. `data.train_split` to train[:95%%] and `data.val_split`"
        " to train[95%%:], or `data.val_split` to null",
        dataset,
    )


def _check_at_least(least: int, **values: int) -> None:
    for name, value in values.items():
        if value < least:
            raise ValueError(f"`data.{name}` must be at least {least}, got {value}")
