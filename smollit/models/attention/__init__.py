"""Attention of any transformers model over packed documents: its functions, its inputs, and how it is verified."""
