"""Preference pairs in the columns of HuggingFaceH4/ultrafeedback_binarized: prompt, chosen, rejected."""

from typing import Any, ClassVar

from smollit.data.base import ChatDataModule
from smollit.data.encode import Kind


class UltraFeedbackDataModule(ChatDataModule):
    """Preference pairs (DPO): the columns `prompt`, `chosen` and `rejected` of HuggingFaceH4/ultrafeedback_binarized,
    and anything like it.

    Args:
        dataset: Hub id, a local folder laid out as on the hub, or a .jsonl, .json, .csv or .parquet file.
        train_split: Split to train on; a slice such as `train_prefs[:5%]` takes a part.
        val_split: Split to validate on; null validates on nothing.
        **options: All other options of ChatDataModule.
    """

    kind: ClassVar[Kind] = "preference"

    def __init__(
        self,
        dataset: str = "HuggingFaceH4/ultrafeedback_binarized",
        train_split: str = "train_prefs",
        val_split: str | None = "test_prefs",
        **options: Any,  # jsonargparse reads them from the base class: one list of options, not three
    ) -> None:
        super().__init__(dataset, train_split, val_split, **options)
