"""Rows of chats and preferences -> batches."""

from smollit.data.datamodule import ChatDataModule
from smollit.data.sources.mixture import Part
from smollit.data.ultrachat import UltraChatDataModule
from smollit.data.ultrafeedback import PreferenceDataModule, UltraFeedbackDataModule

__all__ = ["ChatDataModule", "Part", "PreferenceDataModule", "UltraChatDataModule", "UltraFeedbackDataModule"]
