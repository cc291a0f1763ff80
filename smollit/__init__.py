"""smollit: fine-tune small language models on chats (SFT) and on preferences (DPO), exactly and by config alone."""

__version__ = "0.3.0"
