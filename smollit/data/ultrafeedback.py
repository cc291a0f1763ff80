"""Preference pairs: PreferenceDataModule, and its defaults for HuggingFaceH4/ultrafeedback_binarized."""

from dataclasses import replace
from typing import Any, ClassVar, Literal

from smollit.data.datamodule import ChatDataModule
from smollit.data.formats.ranking import PairsOf
from smollit.data.formats.types import Kind
from smollit.data.sources.mixture import Part


class PreferenceDataModule(ChatDataModule):
    """Preference pairs (DPO) in any known format: a prompt, a chosen and a rejected response.

    Args:
        dataset: Hub id, a folder laid out as on the Hub, a file (.jsonl, .json, .csv, .parquet, .arrow; text also as
            .gz or .zst), a glob, or a URL; or a list of parts, each with `dataset`, `weight`, `max_rows` and more.
        min_score_gap: Drop and count pairs whose score_chosen - score_rejected is smaller; null keeps all.
        score_ties: `keep` or `drop` pairs with equal scores.
        pairs_of: Pairs of a prompt with several rated responses: `best-worst` makes one, `all` makes one of any two
            whose scores differ. Pairs of a prompt share one row, which has each response once; the loss is the mean
            over pairs.
        **options: All other options of ChatDataModule.
    """

    kind: ClassVar[Kind] = "preference"
    token_settings: ClassVar[tuple[str, ...]] = (*ChatDataModule.token_settings, "pairs_of")

    def __init__(
        self,
        dataset: str | list[Part],
        *,
        min_score_gap: float | None = None,
        score_ties: Literal["keep", "drop"] = "keep",
        pairs_of: PairsOf = "best-worst",
        **options: Any,
    ) -> None:
        super().__init__(dataset, **options)
        if self.encode_options.train_on != "assistant":
            raise ValueError("`data.train_on` has no effect on preference pairs: both responses count in the loss")
        if self.streaming and pairs_of == "all":
            raise ValueError(
                "`data.pairs_of: all` makes batches of unknown size, which `data.streaming` does not allow"
            )
        self.pairs_of = pairs_of
        self.encode_options = replace(self.encode_options, min_score_gap=min_score_gap, score_ties=score_ties)


class UltraFeedbackDataModule(PreferenceDataModule):
    """Preference pairs (DPO) in the columns of HuggingFaceH4/ultrafeedback_binarized, and anything like them.

    Args:
        dataset: Hub id, a folder laid out as on the Hub, a file (.jsonl, .json, .csv, .parquet, .arrow; text also as
            .gz or .zst), a glob, or a URL; or a list of parts, each with `dataset`, `weight`, `max_rows` and more.
        train_split: Split to train on; a slice such as `train_prefs[:5%]` takes a part of it.
        val_split: Split to validate on, of each part; null disables validation.
        **options: All other options of PreferenceDataModule.
    """

    def __init__(
        self,
        dataset: str | list[Part] = "HuggingFaceH4/ultrafeedback_binarized",
        *,
        train_split: str = "train_prefs",
        val_split: str | None = "test_prefs",
        **options: Any,
    ) -> None:
        super().__init__(dataset, train_split=train_split, val_split=val_split, **options)
