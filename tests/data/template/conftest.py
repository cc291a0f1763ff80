"""Templates and tokenizers that the tests of this room share."""

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from smollit.data.template.template import ChatTemplate, load_template

LoadTemplate = Callable[..., ChatTemplate]


@pytest.fixture(scope="session")
def instruct(shared: Path) -> PreTrainedTokenizerBase:
    """SmolLM2-Instruct's tokenizer, with its chat template."""
    return AutoTokenizer.from_pretrained(shared / "models" / "smollm2-tokenizer" / "instruct-135M")


@pytest.fixture(scope="session")
def base(shared: Path) -> PreTrainedTokenizerBase:
    """SmolLM2's base tokenizer: it names only <|endoftext|> as special, and has no chat template."""
    return AutoTokenizer.from_pretrained(shared / "models" / "smollm2-tokenizer" / "base-135M")


@pytest.fixture(scope="session")
def chatml(tiny_tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
    """ChatML with the tiny tokenizer."""
    return load_template(tiny_tokenizer, "chatml")


@pytest.fixture
def load(tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> LoadTemplate:
    """Loads a template from its source, as users do from a file mine.jinja."""

    def build(source: str, **options: str) -> ChatTemplate:
        (tmp_path / "mine.jinja").write_text(source)
        return load_template(tiny_tokenizer, str(tmp_path / "mine.jinja"), **options)

    return build
