"""Preference pairs in the columns of HuggingFaceH4/ultrafeedback_binarized: prompt, chosen, rejected."""

from typing import Any

from smollit.data.preference import PreferenceDataModule
from smollit.data.sources.mixture import Part


class UltraFeedbackDataModule(PreferenceDataModule):
    """Preference pairs (DPO): the columns `prompt`, `chosen` and `rejected` of HuggingFaceH4/ultrafeedback_binarized,
    and anything like it.

    Args:
        dataset: Hub id, a folder laid out as on the hub, a file (.jsonl, .json, .csv, .parquet, .arrow; text also as
            .gz or .zst), or a glob; or a list of parts, each with `dataset`, `weight`, `max_rows` and more.
        train_split: Split to train on; a slice such as `train_prefs[:5%]` takes a part.
        val_split: Split to validate on, of each part; null validates on nothing.
        **options: All other options of PreferenceDataModule.
    """

    def __init__(
        self,
        dataset: str | list[Part] = "HuggingFaceH4/ultrafeedback_binarized",
        train_split: str = "train_prefs",
        val_split: str | None = "test_prefs",
        **options: Any,  # jsonargparse reads them from the base class: one list of options, not three
    ) -> None:
        super().__init__(dataset, train_split, val_split, **options)
