"""Chats in the columns of HuggingFaceH4/ultrachat_200k: prompt, prompt_id, messages."""

from typing import Any

from smollit.data.datamodule import ChatDataModule
from smollit.data.sources.mixture import Part


class UltraChatDataModule(ChatDataModule):
    """Chats to fine-tune on (SFT): the column `messages` of HuggingFaceH4/ultrachat_200k, and anything like it.

    Args:
        dataset: Hub id, a folder laid out as on the Hub, a file (.jsonl, .json, .csv, .parquet, .arrow; text also as
            .gz or .zst), a glob, or a URL; or a list of parts, each with `dataset`, `weight`, `max_rows` and more.
        train_split: Split to train on; a slice such as `train_sft[:5%]` takes a part of it.
        val_split: Split to validate on, of each part; null disables validation.
        **options: All other options of ChatDataModule.
    """

    def __init__(
        self,
        dataset: str | list[Part] = "HuggingFaceH4/ultrachat_200k",
        *,
        train_split: str = "train_sft",
        val_split: str | None = "test_sft",
        **options: Any,
    ) -> None:
        super().__init__(dataset, train_split=train_split, val_split=val_split, **options)
