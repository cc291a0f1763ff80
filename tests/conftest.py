"""Fixtures that all tests share: a tiny tokenizer, a tiny model with weights, and the real rows of ../shared."""

# The hub library reads its environment when it is imported
import os

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing downloads

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

ROOT = Path(__file__).parent.parent
TINY = ROOT / "smollit" / "models" / "tiny"
SAMPLES = ROOT / "smollit" / "data" / "samples"


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerBase:
    """The tiny tokenizer that ships with the package: ids 0 <|endoftext|>, 1 <|im_start|>, 2 <|im_end|>."""
    return AutoTokenizer.from_pretrained(TINY)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random 2-layer Llama of hidden size 32, the tiny tokenizer, and ChatML as its template."""
    folder = tmp_path_factory.mktemp("tiny-model")
    config = AutoConfig.from_pretrained(TINY)
    config.hidden_size, config.intermediate_size, config.num_hidden_layers = 32, 64, 2
    config.head_dim, config.num_attention_heads, config.num_key_value_heads = 8, 4, 2
    config.layer_types = None
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    tokenizer.chat_template = (ROOT / "smollit" / "data" / "template" / "chatml.jinja").read_text()
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache of tokenised data for the whole session."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def shared() -> Path:
    """../shared with real rows and tokenizers."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        if os.environ.get("SMOLLIT_REQUIRE_SHARED"):
            pytest.fail(f"{folder} is missing, and SMOLLIT_REQUIRE_SHARED is set")
        pytest.skip(f"{folder} is missing: this test needs its real rows and tokenizers")
    return folder


@pytest.fixture(autouse=True)
def _few_threads() -> Iterator[None]:
    """Tiny models run faster, and the same everywhere, on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
