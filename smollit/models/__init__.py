"""Causal language models of transformers, and their sharding."""

from smollit.models.causal_lm import CausalLM

__all__ = ["CausalLM"]
