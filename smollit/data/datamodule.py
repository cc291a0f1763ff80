"""ChatDataModule: splits and their parts, the tokenizer and template, the loaders. Subclasses name defaults."""

import logging
import os
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from smollit.batch import Batch
from smollit.data.batching.collate import collate_chats, collate_pairs, collate_prompts
from smollit.data.batching.dataset import Examples
from smollit.data.batching.loaders import Collate, batch_loader, stream_loader
from smollit.data.batching.sampler import BatchSampler, Order, Position
from smollit.data.batching.streaming import Stream, StreamingExamples
from smollit.data.encoding.encoder import ControlText, EncodeOptions, Truncate
from smollit.data.encoding.prepared import Prepared, prepare
from smollit.data.encoding.report import Report, write_reports
from smollit.data.encoding.telling import describe_template, tell_packing, tell_same_rows
from smollit.data.formats.detect import FormatName
from smollit.data.formats.types import Kind
from smollit.data.sources.mixture import Part
from smollit.data.sources.splits import Splits, label
from smollit.data.template.template import ChatTemplate, load_template
from smollit.data.template.tokenizer import load_tokenizer

log = logging.getLogger(__name__)
Packing = Literal["auto", "on", "off"]
STAGES = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}


class ChatDataModule(LightningDataModule):
    """Chats from the hub or from local files, in any known format, tokenised once into an Arrow cache.

    Args:
        dataset: Hub id, a folder laid out as on the hub, a file (.jsonl, .json, .csv, .parquet, .arrow; text also as
            .gz or .zst), or a glob; or a list of parts, each with `dataset`, `weight`, `max_rows` and more.
        train_split: Split to train on; a slice such as `train_sft[:5%]` takes a part.
        val_split: Split to validate on, of each part; null validates on nothing.
        test_split: Split of `test`; null takes `val_split`.
        predict_split: Split whose prompts `predict` answers; null takes `val_split`.
        val_sets: Named sets to validate on instead of `val_split`: each gets curves of its own, `val/<name>/loss`,
            and `val/loss` is over all their tokens.
        format: What rows look like: `messages`, `prompt_completion`, `sharegpt`, `alpaca`, `text`, `dialogue`
            ("\n\nHuman: ..."), `preference`; `auto` recognises it from the columns.
        columns: Columns that are named in another way, as {messages: dialog}.
        extra_roles: Roles that messages may have besides system, user, assistant and tool.
        tokenizer_name: Hub id or folder of the tokenizer; null takes the model's.
        chat_template: `auto` (the tokenizer's own, else ChatML), `chatml`, `article`, or the path of a Jinja file.
        add_tokens: Make the template's markers single tokens where they are not, and give the model embeddings for
            them: the mean of all others, to begin with.
        default_system: What becomes of a system text that the template adds by itself: `keep`, `drop`, or a text that
            replaces it.
        max_length: Longest sequence in tokens; for pairs, of the prompt and either answer.
        truncate: What becomes of longer ones: `right` cuts them on the right (of pairs, both answers);
            `left-turns` drops whole turns from the start, of pairs from the prompt's; `drop` leaves them out;
            `error` refuses the run.
        train_on: What is trained: `assistant` (all its turns), `last` (its last turn), or a list of roles.
        control_text: What becomes of text in a message that spells a control token: `escape` reads it as plain text,
            `drop` leaves the row out, `error` refuses the run.
        train_batch_size: Rows per training batch and device: chats or pairs, or packed rows of several.
        val_batch_size: Chats or pairs per batch and device in validation, test and prediction.
        max_batch_tokens: Most positions per batch and device, with padding: batches of long rows get fewer of them.
            null sets no limit.
        packing: `on` puts several chats or pairs into rows of `pack_length`, which do not see each other; `off`
            gives each a row of its own; `auto` packs on a GPU.
        pack_length: Positions of a packed row; null takes `max_length`, for pairs twice that.
        group_by_length: Batches of rows of similar length: less padding, a little less shuffle.
        longest_first: Begin the first epoch with the longest rows, so that memory runs out at once if it does.
        shuffle: Whether each epoch has an order of its own.
        streaming: Read training rows while the run goes on, for data that do not fit the disk; needs
            `trainer.max_steps`. No packing, no grouping.
        shuffle_buffer: Rows among which the next one is drawn when streaming; 0 keeps the order of the files.
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
        dataset: str | list[Part],
        train_split: str = "train",
        val_split: str | None = "test",
        test_split: str | None = None,
        predict_split: str | None = None,
        val_sets: dict[str, Part] | None = None,
        format: FormatName = "auto",
        columns: dict[str, str] | None = None,
        extra_roles: list[str] | None = None,
        tokenizer_name: str | None = None,
        chat_template: str = "auto",
        add_tokens: bool = False,
        default_system: str = "keep",
        max_length: int = 2048,
        truncate: Truncate = "right",
        train_on: str | list[str] = "assistant",
        control_text: ControlText = "escape",
        train_batch_size: int = 8,
        val_batch_size: int = 8,
        max_batch_tokens: int | None = None,
        packing: Packing = "off",
        pack_length: int | None = None,
        group_by_length: bool = False,
        longest_first: bool = True,
        shuffle: bool = True,
        streaming: bool = False,
        shuffle_buffer: int = 10_000,
        seed: int = 0,
        num_workers: int = 0,
        num_proc: int | None = None,
        pad_to_multiple_of: int = 1,
        max_dropped_share: float = 0.1,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        _check_at_least(1, max_length=max_length, train_batch_size=train_batch_size, val_batch_size=val_batch_size)
        _check_at_least(1, pad_to_multiple_of=pad_to_multiple_of, num_proc=num_proc)
        _check_at_least(1, max_batch_tokens=max_batch_tokens, pack_length=pack_length)
        _check_at_least(0, num_workers=num_workers, shuffle_buffer=shuffle_buffer)
        if not 0 <= max_dropped_share <= 1:
            raise ValueError(f"`data.max_dropped_share` must be between 0 and 1, got {max_dropped_share}")
        if streaming and packing == "on":
            raise ValueError("`data.packing: on` needs all lengths beforehand, which `data.streaming` does not have")
        self.splits = Splits(
            [Part(dataset)] if isinstance(dataset, str) else dataset,
            train_split,
            val_split,
            test_split,
            predict_split,
            val_sets or {},
            format,
            columns,
        )
        self.extra_roles = extra_roles or []
        self.tokenizer_name = tokenizer_name
        self.chat_template = chat_template
        self.add_tokens = add_tokens
        self.default_system = default_system
        self.max_length = max_length
        self.truncate: Truncate = truncate
        self.train_on = train_on
        self.control_text: ControlText = control_text
        self.train_batch_size = train_batch_size
        self.val_batch_size = val_batch_size
        self.max_batch_tokens = max_batch_tokens
        self.packing = packing
        self.pack_length = pack_length or (max_length if self.kind == "chat" else 2 * max_length)
        self.group_by_length = group_by_length
        self.longest_first = longest_first
        self.shuffle = shuffle
        self.streaming = streaming
        self.shuffle_buffer = shuffle_buffer
        self.seed = seed
        self.num_workers = num_workers
        self.num_proc = num_proc
        self.pad_to_multiple_of = pad_to_multiple_of
        self.max_dropped_share = max_dropped_share
        self.cache_dir = Path(cache_dir or os.environ.get("SMOLLIT_CACHE") or Path.home() / ".cache" / "smollit")
        self.position = Position()
        self.examples: dict[str, Examples] = {}  # by stage; of named sets by `val/<name>`
        self.reports: dict[str, Report] = {}  # by split
        self._sampler: BatchSampler | None = None
        self._template: ChatTemplate | None = None
        self._prepared: dict[str, Prepared] = {}

    # ---- what rows become

    @property
    def template(self) -> ChatTemplate:
        """The chat template with its tokenizer, loaded when first needed."""
        if self._template is None:
            if self.tokenizer_name is None:
                raise ValueError("`data.tokenizer_name` must be set when the data module is used without the CLI")
            tokenizer = load_tokenizer(self.tokenizer_name)
            settings = (self.chat_template, self.kind == "chat", self.default_system)
            self._template = load_template(tokenizer, *settings)
            if self.add_tokens and tokenizer.add_tokens(self._template.split_markers(), special_tokens=True):
                self._template = load_template(tokenizer, *settings)  # what it knew of the tokenizer has changed
            describe_template(self._template, is_default=self.chat_template == "auto" and not tokenizer.chat_template)
        return self._template

    @property
    def vocabulary_size(self) -> int:
        """Number of token ids that the tokenizer can give."""
        return len(self.template.tokenizer)

    def encode_options(self) -> EncodeOptions:
        """What changes tokens, besides rows, tokenizer and template."""
        train_on = self.train_on if isinstance(self.train_on, str) else tuple(self.train_on)
        return EncodeOptions(self.kind, self.max_length, self.truncate, train_on, self.control_text)

    @property
    def collate(self) -> Collate:
        """Rows of examples of this kind -> Batch."""
        collate = collate_chats if self.kind == "chat" else collate_pairs
        return partial(collate, pad_to_multiple_of=self.pad_to_multiple_of)

    @property
    def val_names(self) -> tuple[str, ...]:
        """Names of the validation sets, if they have names."""
        return tuple(self.splits.val_sets)

    def prepared(self, name: str) -> dict[str, list[Prepared]]:
        """The parts behind `train`, `val`, `test` or `predict`, with their rows found and formats recognised."""
        found = {}
        for key, parts in self.splits.parts(name).items():
            streaming = self.streaming and key == "train"
            found[key] = [self._prepare(label(key, part, len(parts) == 1), part, streaming) for part in parts]
        return found

    def _prepare(self, name: str, part: Part, streaming: bool) -> Prepared:
        """Find a part once: val, test and predict may share it."""
        key = f"{part} {streaming}"
        if key not in self._prepared:
            options = self.encode_options()
            self._prepared[key] = prepare(
                name, part, self.template, options, self.extra_roles, self.cache_dir, self.seed, streaming
            )
        return self._prepared[key]

    # ---- Lightning's hooks

    def prepare_data(self) -> None:
        """Tokenise what the command needs and the cache does not have; Lightning calls it once per node."""
        command = self.trainer.state.fn if self.trainer is not None else None
        for name in STAGES[command.value] if command else ("train", "val", "test", "predict"):
            if name != "train" or not self.streaming:
                for parts in self.prepared(name).values():
                    for part in parts:
                        part.build(self.num_proc)

    def setup(self, stage: str) -> None:
        """Load the cached examples that the stage needs, and report on them once."""
        for name in STAGES[stage]:
            if name != "train" or not self.streaming:
                for key, parts in self.prepared(name).items():
                    if key not in self.examples:
                        self.load(key, parts)
        if stage == "fit":
            self._compare_train_and_val()
        # Only of a fit: a later `validate` in the same folder must not take away what the run was trained on.
        if stage == "fit" and self.trainer is not None and self.trainer.is_global_zero:
            write_reports(self.reports, Path(self.trainer.default_root_dir))

    def load(self, key: str, parts: list[Prepared]) -> None:
        """Load the examples of all parts of a split."""
        loaded = [part.load(self.max_dropped_share) for part in parts]
        self.reports |= {
            (key if len(parts) == 1 else f"{key}: {number}. {part.label}"): report
            for number, (part, (_, report)) in enumerate(zip(parts, loaded, strict=True), 1)
        }
        self.examples[key] = Examples(
            [rows for rows, _ in loaded], [report.rows for _, report in loaded], [part.folder.name for part in parts]
        )

    def train_dataloader(self) -> DataLoader[Batch]:
        """Batches of the epoch and position that the run has reached."""
        if self.streaming:
            return self._stream()
        sampler = self.sampler()
        tell_packing(sampler, self.packing)
        return batch_loader(self._examples("train"), sampler, self.collate, self.num_workers, self.seed)

    def sampler(self) -> BatchSampler:
        """What makes up the training batches of this rank."""
        examples = self._examples("train")
        if self._sampler is None:
            order = Order(
                self.shuffle,
                self.seed,
                self.group_by_length,
                self.longest_first and self.shuffle,
                self.pack_length if self.packs else 0,
                tuple(zip(examples.sizes, self.splits.weights(), strict=True)),
            )
            size, limit = self.train_batch_size, self.max_batch_tokens or 0
            self._sampler = BatchSampler(examples.lengths, size, order, limit, *self._rank(), position=self.position)
        return self._sampler

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """Every validation example once; a loader for each named set."""
        keys = [key for key in self.examples if key.split("/")[0] == "val"]
        loaders = [self._evaluation_loader(key, self.collate) for key in keys]
        return loaders[0] if len(loaders) == 1 else loaders

    def test_dataloader(self) -> DataLoader[Batch]:
        """Every test example once."""
        return self._evaluation_loader("test", self.collate)

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Prompts, without targets."""
        return self._evaluation_loader("predict", collate_prompts)

    # ---- helpers

    @property
    def packs(self) -> bool:
        """Whether training rows are packed."""
        return self.packing == "on" or (self.packing == "auto" and torch.cuda.is_available() and not self.streaming)

    def _examples(self, key: str) -> Examples:
        if key not in self.examples:
            raise ValueError(f"there is no split to {key}: set `data.{key}_split`")
        return self.examples[key]

    def _evaluation_loader(self, key: str, collate: Collate) -> DataLoader[Batch]:
        examples = self._examples(key)
        sampler = BatchSampler(examples.lengths, self.val_batch_size, None, self.max_batch_tokens or 0, *self._rank())
        return batch_loader(examples, sampler, collate, self.num_workers, self.seed)

    def _stream(self) -> DataLoader[Batch]:
        if self.trainer is not None and self.trainer.max_steps == -1:
            raise ValueError("`data.streaming` does not know how long an epoch is: set `trainer.max_steps`")
        parts = self.prepared("train")["train"]
        examples = StreamingExamples(
            [Stream(part.source, part.encoder, part.part.weight) for part in parts],
            self.train_batch_size,
            *self._rank(),
            seed=self.seed,
            shuffle_buffer=self.shuffle_buffer if self.shuffle else 0,
            position=self.position,
        )
        return stream_loader(examples, self.collate, self.num_workers, self.seed)

    def _rank(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _compare_train_and_val(self) -> None:
        """Warn if validation says nothing about new rows."""
        train = set(self.examples["train"].keys) if "train" in self.examples else set()
        if any(train & set(rows.keys) for key, rows in self.examples.items() if key.startswith("val")):
            tell_same_rows()


def _check_at_least(least: int, **values: int | None) -> None:
    for name, value in values.items():
        if value is not None and value < least:
            raise ValueError(f"`data.{name}` must be at least {least}, got {value}")
