"""Causal language models of transformers, and how they are sharded."""

from smollit.models.causal_lm import CausalLM, TokenScores

__all__ = ["CausalLM", "TokenScores"]
