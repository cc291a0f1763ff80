"""Causal language models of transformers, and how they are sharded."""

from smollit.models.causal_lm import CausalLM

__all__ = ["CausalLM"]
