"""TokenizedDataModule: the rows of every split, tokenized once into an Arrow cache. Batches: batched.py."""

import logging
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar

from numpy.typing import NDArray

from smollit.data.batching.dataset import Examples
from smollit.data.checks import check_at_least, check_train_on
from smollit.data.encoding.best import BY_MODEL, keep_best, keep_best_by_model
from smollit.data.encoding.options import ControlTextChoice, EncodeOptions
from smollit.data.encoding.part import EncodedPart, find_part
from smollit.data.encoding.report import Report
from smollit.data.encoding.select import LoadedPart, drop_held_out, drop_repeats
from smollit.data.encoding.truncate import Truncate
from smollit.data.loaded import examples_of, named_reports, warn_of_held_out, warn_of_shared_rows, write_reports
from smollit.data.rows import SOURCE_SETTINGS
from smollit.data.sources.in_memory import on_disk
from smollit.data.sources.mixture import Part, label
from smollit.data.templated import TEMPLATE_SETTINGS, TemplatedDataModule
from smollit.paths import cache_folder

log = logging.getLogger("smollit.data")
STAGES = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}
ENCODE_SETTINGS = tuple(field.name for field in fields(EncodeOptions) if field.name != "kind")


class TokenizedDataModule(TemplatedDataModule):
    """Splits of data sets in any known format, tokenized once into an Arrow cache. BatchedDataModule batches them.

    Args:
        dataset: Hub id, a folder laid out as on the Hub, a file (.jsonl, .json, .csv, .parquet, .arrow; text also as
            .gz or .zst), a glob, or a URL; or a list of parts, each with `dataset`, `weight`, `max_rows` and more.
        max_length: Longest sequence in tokens; for pairs, of the prompt and either response together.
        truncate: How longer rows are shortened. `right` truncates on the right, of pairs both responses; `left-turns`
            drops whole turns from the start, of pairs from the prompt's; `drop` drops the row; `error` refuses the run.
        train_on: Turns with loss tokens: `assistant` (all assistant turns), `last` (the last assistant turn), `all`
            (all tokens, headers too), or a list of roles, or of parts of assistant turns: `reasoning`, `content`,
            `tool_calls`.
        control_text: How text in a message that spells a control token is handled. `escape` tokenizes it as plain text,
            `drop` drops the row, `error` refuses the run.
        num_proc: Number of processes that tokenize; null takes one.
        cache_dir: Folder of the tokenized data; null takes $SMOLLIT_CACHE, else ~/.cache/smollit.
        **options: All other options of TemplatedDataModule.
    """

    # What changes the tokens of the training rows: the cache key depends on each, and a resumed run may not change it.
    token_settings: ClassVar[tuple[str, ...]] = (*SOURCE_SETTINGS, *TEMPLATE_SETTINGS, *ENCODE_SETTINGS)

    def __init__(
        self,
        dataset: str | list[Part],
        *,
        max_length: int = 2048,
        truncate: Truncate = "right",
        train_on: str | list[str] = "assistant",
        control_text: ControlTextChoice = "escape",
        num_proc: int | None = None,
        cache_dir: str | None = None,
        **options: Any,
    ) -> None:
        self.cache_dir = Path(cache_dir).expanduser() if cache_dir else cache_folder()
        # From Python also rows in memory; the annotation is what a config can say.
        super().__init__(on_disk(dataset, self.cache_dir), **options)
        check_at_least(1, max_length=max_length, num_proc=num_proc)
        check_train_on(train_on if isinstance(train_on, str) else tuple(train_on), self.extra_roles)
        self.encode_options = EncodeOptions(
            kind=self.kind,
            max_length=max_length,
            truncate=truncate,
            train_on=train_on if isinstance(train_on, str) else tuple(train_on),
            control_text=control_text,
        )
        self.num_proc = num_proc
        self.examples: dict[str, Examples] = {}  # by split: train, val or val/<name>, test, predict
        self.reports: dict[str, Report] = {}  # by split; of several parts, one for each
        self._parts: dict[str, EncodedPart] = {}
        self._used: dict[str, tuple[list[EncodedPart], list[LoadedPart]]] = {}  # by split
        self._is_selected = False  # by a score of the model

    # ---- what modules read

    @property
    def max_length(self) -> int:
        """Longest sequence in tokens."""
        return self.encode_options.max_length

    @property
    def val_names(self) -> tuple[str, ...]:
        """Names of the validation sets, if they have names."""
        return tuple(self.splits.val_sets)

    # ---- from rows to examples

    def prepare_data(self) -> None:
        """Tokenize what the command needs and the cache lacks; Lightning calls it once per node."""
        command = self.trainer.state.fn if self.trainer is not None else None
        for split in STAGES[command.value] if command else ("train", "val", "test", "predict"):
            for parts in self._cached_parts(split).values():
                for part in parts:
                    part.build(self.num_proc)

    def setup(self, stage: str) -> None:
        """Load the cached examples that the stage needs, and report on them once."""
        self.check_model()
        splits = {key: parts for split in STAGES[stage] for key, parts in self._cached_parts(split).items()}
        for key, loaded in self.used({key: parts for key, parts in splits.items() if key not in self.examples}).items():
            self._use(key, splits[key], loaded)
        if stage == "fit":
            warn_of_shared_rows(self.examples)
            # Only of a fit: a later `validate` in the same folder must not replace the report of the run.
            self._write_reports()

    @property
    def waits_for_selection(self) -> bool:
        """Whether `select` is a score of the model, and the training rows are not selected yet."""
        return self.select in BY_MODEL and not self._is_selected

    def select_by_model(self, logps: NDArray[Any]) -> NDArray[Any]:
        """Keep the best fraction of the training rows by a score of the model, and return the values of these.

        Args:
            logps: Two log-probabilities of every training row, [N, 2]: encoding/best.py.
        """
        parts, loaded = self._used["train"]
        left, kept = keep_best_by_model(loaded, logps, self.select, self.select_share)
        self._use("train", parts, left)
        self._is_selected = True
        self._write_reports()
        return logps[kept]

    def _use(self, key: str, parts: list[EncodedPart], loaded: list[LoadedPart]) -> None:
        """Take the examples of a split, and their reports."""
        self._used[key] = (parts, loaded)
        self.reports |= named_reports(key, parts, loaded)
        self.examples[key] = examples_of(loaded)

    def _write_reports(self) -> None:
        if self.trainer is not None and self.trainer.is_global_zero:
            write_reports(self.reports, Path(self.trainer.default_root_dir))

    def parts(self, split: str) -> dict[str, list[EncodedPart]]:
        """The parts of `train`, `val`, `test` or `predict`, with their rows found and their formats detected."""
        return {
            key: [
                self._find(label(key, part, len(parts) == 1), part, self.streaming and key == "train") for part in parts
            ]
            for key, parts in self.splits.parts(split).items()
        }

    def used(self, splits: dict[str, list[EncodedPart]], *, verify: bool = True) -> dict[str, list[LoadedPart]]:
        """The examples of splits that are used: of `train`, without repeats and those of validation, if so set.

        Args:
            splits: The parts of each split.
            verify: Whether to log the reports, and refuse a split that can't be trained on.
        """
        loaded = {
            key: [part.load(self.max_dropped_share) if verify else part.read() for part in parts]
            for key, parts in splits.items()
        }
        if "train" in loaded:
            held_out = [part for key, parts in loaded.items() if key.startswith("val") for part in parts]
            loaded["train"] = drop_repeats(loaded["train"], self.dedup)
            loaded["train"] = drop_held_out(loaded["train"], held_out, self.drop_val_rows)
            if verify:
                warn_of_held_out(loaded["train"], held_out)
            loaded["train"] = keep_best(loaded["train"], self.select, self.select_share)
        if verify:
            for key, parts in splits.items():
                for part, used in zip(parts, loaded[key], strict=True):
                    part.warn(used.report)
        return loaded

    def _cached_parts(self, split: str) -> dict[str, list[EncodedPart]]:
        """The parts that the cache holds; of a streamed split, and of one that has its examples already, none."""
        return {} if split in self.examples or (split == "train" and self.streaming) else self.parts(split)

    def _find(self, name: str, part: Part, streaming: bool) -> EncodedPart:
        """Find a part once: val, test and predict may share it."""
        key = f"{part} {streaming}"
        if key not in self._parts:
            self._parts[key] = find_part(
                part,
                label=name,
                template=self.template,
                options=self.encode_options,
                extra_roles=self.extra_roles,
                odd_turns=self.odd_turns,
                pairs_of=self.pairs_of,
                convert=self.convert,
                cache_dir=self.cache_dir,
                seed=self.seed,
                streaming=streaming,
            )
        return self._parts[key]
