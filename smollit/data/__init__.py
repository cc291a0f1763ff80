"""Rows of chats and preferences -> batches."""

from smollit.data.base import ChatDataModule
from smollit.data.ultrachat import UltraChatDataModule
from smollit.data.ultrafeedback import UltraFeedbackDataModule

__all__ = ["ChatDataModule", "UltraChatDataModule", "UltraFeedbackDataModule"]
