"""Conversations to token ids and loss spans, in an Arrow cache."""
