"""RowsDataModule: which rows of which data sets are in each split. templated.py renders them."""

import os

from lightning.pytorch import LightningDataModule

from smollit.data.checks import check_at_least
from smollit.data.encoding.best import SelectBy, check_select
from smollit.data.encoding.select import Same
from smollit.data.formats.messages.roles import OddTurns
from smollit.data.formats.ranking import PairsOf
from smollit.data.sources.in_memory import as_part
from smollit.data.sources.mixture import FormatName, Part, Splits

SEED_EVERYTHING = "PL_GLOBAL_SEED"  # where Lightning keeps the seed
SOURCE_SETTINGS = (
    *("dataset", "subset", "revision", "train_split", "where", "max_rows"),
    *("format", "columns", "extra_roles", "odd_turns", "convert"),
)


class RowsDataModule(LightningDataModule):
    """Splits of data sets in any known format.

    Args:
        dataset: Hub id, a folder laid out as on the Hub, a file (.jsonl, .json, .csv, .parquet, .arrow; text also as
            .gz or .zst), a glob, or a URL; or a list of parts, each with `dataset`, `weight`, `max_rows` and more.
        train_split: Split to train on; a slice such as `train_sft[:5%]` takes a part of it.
        val_split: Split to validate on, of each part; null disables validation.
        test_split: Split of `test`; null takes `val_split`.
        predict_split: Split whose prompts `predict` continues; null takes `val_split`.
        val_sets: Named sets to validate on instead of `val_split`: each logs its own `val/<name>/loss`, and `val/loss`
            is over the tokens of all of them.
        subset: Configuration of a data set that has several.
        revision: Revision of a data set on the Hub: a branch, a tag or a commit.
        where: Rows to use, as an expression over columns, such as `score > 3 and lang == "en"`; null takes all.
        max_rows: At most this many training rows of each part, drawn at random; when streaming, the first ones.
        dedup: Leave out training rows whose `prompt`, or whole `row`, repeats an earlier one; `off` keeps them.
        drop_val_rows: Leave out training rows whose `prompt`, or whole `row`, stands in validation; `off` keeps them.
        select: Keep the training rows of each part that are best by a score: of chats `ifd` (how little the prompt
            helps the model with the response); of pairs `score_gap` (score_chosen minus score_rejected),
            `length_controlled_gap` (the gap that the lengths do not explain), or, with `model.reference: precomputed`,
            `reference_margin` or `response_perplexity`; `off` keeps all.
        select_share: Fraction of the rows that `select` keeps, above 0 and at most 1.
        format: Format of the rows: `messages`, `prompt_completion`, `sharegpt`, `alpaca`, `text`, `dialogue` (texts
            with turns that start with `Human:` and `Assistant:`), `thread` (one message a row), `preference`, `ranked`
            (several responses a row) or `unpaired` (one rated response a row); `auto` detects it from the columns.
        columns: Columns that have another name than their part, such as {messages: dialog}.
        extra_roles: Roles that messages may have besides system, user, assistant and tool.
        odd_turns: What happens to turns that follow their own kind, and to system messages after the first turn: `drop`
            drops the row, `merge` joins them, `error` refuses the run.
        convert: Your function that turns each row into rows of a known format, such as `my_module.from_threads`.
        streaming: Read training rows during the run, for data that do not fit on the disk; needs `trainer.max_steps`.
            No packing, no grouping.
        seed: Seed of the order of the training rows, and of the draw of `max_rows`; null follows `seed_everything`, and
            in a resumed run the seed that it began with.
        max_dropped_share: Fraction of rows, 0 to 1, that may be dropped before the run is refused.
    """

    def __init__(
        self,
        dataset: str | list[Part],
        *,
        train_split: str = "train",
        val_split: str | None = "test",
        test_split: str | None = None,
        predict_split: str | None = None,
        val_sets: dict[str, Part] | None = None,
        subset: str | None = None,
        revision: str | None = None,
        where: str | None = None,
        max_rows: int | None = None,
        dedup: Same = "off",
        drop_val_rows: Same = "off",
        select: SelectBy = "off",
        select_share: float | None = None,
        format: FormatName = "auto",
        columns: dict[str, str] | None = None,
        extra_roles: list[str] | None = None,
        odd_turns: OddTurns = "drop",
        convert: str | None = None,
        streaming: bool = False,
        seed: int | None = None,
        max_dropped_share: float = 0.1,
    ) -> None:
        super().__init__()
        check_at_least(1, max_rows=max_rows)
        if not 0 <= max_dropped_share <= 1:
            raise ValueError(f"`data.max_dropped_share` must be between 0 and 1, got {max_dropped_share}")
        if streaming and (dedup, drop_val_rows) != ("off", "off"):
            raise ValueError("`data.dedup` and `data.drop_val_rows` compare all rows, and `data.streaming` has not all")
        check_select(select, select_share, streaming=streaming)
        self.splits = Splits(
            dataset=[Part(dataset)] if isinstance(dataset, str) else dataset,
            train=train_split,
            val=val_split,
            test=test_split,
            predict=predict_split,
            val_sets={name: as_part(part) for name, part in (val_sets or {}).items()},
            format=format,
            columns=columns,
            subset=subset,
            revision=revision,
            where=where,
            max_rows=max_rows,
        )
        self.dedup: Same = dedup
        self.drop_val_rows: Same = drop_val_rows
        self.select: SelectBy = select
        self.select_share = select_share
        self.extra_roles = extra_roles or []
        self.odd_turns: OddTurns = odd_turns
        self.pairs_of: PairsOf = "best-worst"
        self.convert = convert
        self.streaming = streaming
        self.follows_seed_everything = seed is None
        self.seed = int(os.environ.get(SEED_EVERYTHING, "0")) if seed is None else seed
        self.max_dropped_share = max_dropped_share

    @property
    def has_validation(self) -> bool:
        """Whether there are rows to validate on."""
        return self.splits.val is not None or bool(self.splits.val_sets)
