"""A model of SmolLM2's size with random weights, where the real ones are not available: for speed and memory only.

python -m compare.random_model 135M OUT --tokenizer FOLDER
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from compare.tiny import TINY

COMMON = {"vocab_size": 49152, "max_position_embeddings": 8192, "tie_word_embeddings": True, "rms_norm_eps": 1e-5}
# As in the config.json of HuggingFaceTB/SmolLM2-135M, SmolLM2-360M and SmolLM2-1.7B.
SIZES: dict[str, dict[str, Any]] = {
    "135M": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
    "360M": {
        "hidden_size": 960,
        "intermediate_size": 2560,
        "num_hidden_layers": 32,
        "num_attention_heads": 15,
        "num_key_value_heads": 5,
    },
    "1.7B": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 24,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
    },
}


def make_config(size: str) -> LlamaConfig:
    """The configuration, without dropout."""
    return LlamaConfig(**COMMON | SIZES[size], bos_token_id=1, eos_token_id=2, pad_token_id=2)


def make_model(size: str, out: Path, tokenizer: Path) -> None:
    """A Hugging Face folder: fp32 weights, and the tokenizer."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(make_config(size), dtype=torch.float32).save_pretrained(out)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokenizer", type=Path, default=TINY, help="of at most 49,152 words; else the tiny one")
    options = parser.parse_args()
    make_model(options.size, options.out, options.tokenizer)
