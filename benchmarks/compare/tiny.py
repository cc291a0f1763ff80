"""A tiny random model, for trying things out and where the weights do not matter."""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import smollit

TINY = Path(smollit.__file__).parent / "models" / "tiny"


def make_tiny(folder: Path) -> Path:
    """A Hugging Face folder: the configuration and the tokenizer that ship with the package, and random weights."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(TINY)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(TINY).save_pretrained(folder)
    return folder
