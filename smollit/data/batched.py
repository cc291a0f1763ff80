"""BatchedDataModule: which tokenized examples make up which batch, and how many rows an optimizer step has."""

import logging
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from smollit.data.batching.collate import collate_chats, collate_pairs
from smollit.data.batching.dataset import Examples
from smollit.data.batching.documents import Documents
from smollit.data.batching.loaders import Collate
from smollit.data.batching.packing import describe_packing
from smollit.data.batching.position import TrainingPosition
from smollit.data.batching.sampler import BatchSampler, Order
from smollit.data.batching.streaming import Stream, StreamingExamples
from smollit.data.checks import (
    SHUFFLE_BUFFER,
    accumulation,
    check_at_least,
    check_packing,
    check_step_size,
    check_stream,
)
from smollit.data.sources.mixture import Part
from smollit.data.tokenized import TokenizedDataModule

log = logging.getLogger("smollit.data")
Packing = Literal["auto", "on", "off"]


class BatchedDataModule(TokenizedDataModule):
    """Tokenized splits, in packed or padded batches. ChatDataModule hands them to Lightning.

    Args:
        dataset: Hub id, a folder laid out as on the Hub, a file (.jsonl, .json, .csv, .parquet, .arrow; text also as
            .gz or .zst), a glob, or a URL; or a list of parts, each with `dataset`, `weight`, `max_rows` and more.
        train_batch_size: Rows per training batch and device: chats, prompts with their pairs, or packed sequences.
        val_batch_size: Chats, or prompts with their pairs, per batch and device in validation, test and prediction.
        global_batch_size: Rows per optimizer step, over all devices and micro-batches: the accumulation follows from
            it for any number of devices. null leaves it to `trainer.accumulate_grad_batches`.
        max_batch_tokens: Maximum number of positions per batch and device, padding included: batches of long rows get
            fewer rows. null sets no limit; `auto` finds what a GPU has memory for at the start of a run, and keeps it
            in the checkpoint.
        packing: `on` packs several chats or pairs into sequences of `pack_length`, in which they do not attend to each
            other; `off` gives each a sequence; `auto` packs on a GPU.
        pack_length: Positions of a packed sequence; null takes `max_length`, for pairs twice that. The pairs
            of a prompt that need more than this, packed or not, are divided into several rows.
        group_by_length: Batch rows of similar length: less padding, a little less shuffling.
        longest_first: Begin the first epoch with the longest rows, so that a run that runs out of memory does so at
            once.
        shuffle: Whether each epoch has a different order.
        shuffle_buffer: Number of rows among which the next one is drawn when streaming; 0 keeps the order of the files.
        num_workers: Number of processes that load batches; 0 loads in the main process.
        pad_to_multiple_of: Sequences are padded to a multiple of this many tokens.
        **options: All other options of TokenizedDataModule.
    """

    # What changes the order of the training rows: the position that a checkpoint holds is a position in this order.
    order_settings: ClassVar[tuple[str, ...]] = (
        "packing",
        "pack_length",
        "group_by_length",
        "longest_first",
        "shuffle",
        "shuffle_buffer",
        "streaming",
        "seed",
        "dedup",
        "drop_val_rows",
        "select",
        "select_share",
    )

    def __init__(
        self,
        dataset: str | list[Part],
        *,
        train_batch_size: int = 8,
        val_batch_size: int = 8,
        global_batch_size: int | None = None,
        max_batch_tokens: int | Literal["auto"] | None = None,
        packing: Packing = "off",
        pack_length: int | None = None,
        group_by_length: bool = False,
        longest_first: bool = True,
        shuffle: bool = True,
        shuffle_buffer: int = SHUFFLE_BUFFER,
        num_workers: int = 0,
        pad_to_multiple_of: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(dataset, **options)
        check_at_least(1, train_batch_size=train_batch_size, val_batch_size=val_batch_size)
        self.finds_batch_tokens = max_batch_tokens == "auto"
        self.max_batch_tokens = None if max_batch_tokens == "auto" else max_batch_tokens
        check_at_least(1, global_batch_size=global_batch_size, max_batch_tokens=self.max_batch_tokens)
        check_at_least(1, pack_length=pack_length)
        check_at_least(1, pad_to_multiple_of=pad_to_multiple_of)
        check_at_least(0, num_workers=num_workers, shuffle_buffer=shuffle_buffer)
        check_packing(packing, self.streaming, pack_length=pack_length, group_by_length=group_by_length)
        check_step_size(global_batch_size, max_batch_tokens=max_batch_tokens)
        check_stream(self.streaming, max_batch_tokens=max_batch_tokens, shuffle_buffer=shuffle_buffer)
        self.train_batch_size = train_batch_size
        self.val_batch_size = val_batch_size
        self.global_batch_size = global_batch_size
        self.packing = packing
        self.pack_length = pack_length or (self.max_length if self.kind == "chat" else 2 * self.max_length)
        self.group_by_length = group_by_length
        self.longest_first = longest_first
        self.shuffle = shuffle
        self.shuffle_buffer = shuffle_buffer
        self.num_workers = num_workers
        self.pad_to_multiple_of = pad_to_multiple_of
        self.position = TrainingPosition()
        self._documents: dict[str, Documents] = {}  # by split
        self._batches: BatchSampler | StreamingExamples | None = None

    @property
    def collate(self) -> Collate:
        """Rows of examples of this kind -> Batch."""
        collate = collate_chats if self.kind == "chat" else collate_pairs
        return partial(collate, pad_to_multiple_of=self.pad_to_multiple_of)

    @property
    def packs(self) -> bool:
        """Whether training rows are packed."""
        return self.packing == "on" or (self.packing == "auto" and torch.cuda.is_available() and not self.streaming)

    @property
    def lacks_batch_tokens(self) -> bool:
        """Whether `max_batch_tokens: auto` is not found yet."""
        return self.finds_batch_tokens and self.max_batch_tokens is None

    def use_batch_tokens(self, number: int) -> None:
        """Make batches of at most so many positions, as `max_batch_tokens: auto` found."""
        self.max_batch_tokens, self._batches = number, None

    def set_accumulation(self, trainer: Trainer, devices: int) -> None:
        """Let the trainer accumulate as many micro-batches as `global_batch_size` asks for.

        Raises:
            UsageError: If that is no whole number of micro-batches, or the trainer has another accumulation.
        """
        if self.global_batch_size is not None:
            given = trainer.accumulate_grad_batches
            trainer.accumulate_grad_batches = accumulation(
                self.global_batch_size, self.train_batch_size, devices=devices, given=given
            )

    # ---- the batches

    def training_batches(self) -> BatchSampler | StreamingExamples | None:
        """The training batches of this rank; None without a training split."""
        if not self.streaming and "train" not in self.examples:
            return None
        if self._batches is None or self._batches.batch_size != self.train_batch_size:
            self._batches = self._stream() if self.streaming else self._sampler()
        return self._batches

    def sampler(self) -> BatchSampler:
        """The training batches of this rank, of rows that are not streamed."""
        self._examples("train")
        batches = self.training_batches()
        assert isinstance(batches, BatchSampler), "a stream has no sampler"
        return batches

    def _sampler(self) -> BatchSampler:
        if self.waits_for_selection:
            needed = "SFTModule" if self.select == "ifd" else "the pass that `model.reference: precomputed` makes"
            raise ValueError(
                f"`data.select: {self.select}` needs {needed}, and SmollitTrainer: use these, or select by a score of"
                " the data"
            )
        documents = self.documents("train")
        order = Order(
            shuffle=self.shuffle,
            seed=self.seed,
            group_by_length=self.group_by_length,
            longest_first=self.longest_first and self.shuffle,
            pack_length=self.pack_length if self.packs else 0,
            parts=tuple(zip(documents.sizes, self.splits.weights(), strict=True)),
            repeats=self.trainer is not None and self.trainer.overfit_batches > 0,  # type: ignore[attr-defined]
        )
        rank, world_size = self._rank()
        return BatchSampler(
            documents.lengths,
            self.train_batch_size,
            order=order,
            max_batch_tokens=1 if self.lacks_batch_tokens else self.max_batch_tokens or 0,
            rows_per_step=self.global_batch_size or 0,
            rank=rank,
            world_size=world_size,
            position=self.position.start,
        )

    def _examples(self, key: str) -> Examples:
        if key not in self.examples:
            raise ValueError(f"there is no split to {key}: set `data.{key}_split`")
        return self.examples[key]

    def documents(self, key: str) -> Documents:
        """What the batches of a split are made of: its chats, or its prompts with their pairs.

        Raises:
            ValueError: If there is no such split.
        """
        examples, known = self._examples(key), self._documents.get(key)
        if known is None or known.examples is not examples:
            self._documents[key] = known = Documents(examples, self.pack_length)
        return known

    def _stream(self) -> StreamingExamples:
        rank, world_size = self._rank()
        return StreamingExamples(
            [Stream(part.source, part.encoder, part.part.weight) for part in self.parts("train")["train"]],
            self.train_batch_size,
            rank=rank,
            world_size=world_size,
            seed=self.seed,
            shuffle_buffer=self.shuffle_buffer if self.shuffle else 0,
            position=self.position.start,
        )

    @rank_zero_only
    def _log_packing(self, sampler: BatchSampler) -> None:
        """Log whether sequences are packed, and their fill rate."""
        if self.packs:
            log.info("packing: on, %s", describe_packing(sampler.lengths, sampler.rows(), self.pack_length))
        elif self.packing == "auto":
            log.info("packing: off (auto), since this machine has no GPU")

    def _rank(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
