"""Loads a tokenizer, or says what is wrong with its name."""

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from smollit.names import check_folder, first_line


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a hub id or folder.

    Raises:
        ValueError: If it can't be had, or has no fast (Rust) version.
    """
    check_folder(name, "tokenizer_name")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except Exception as error:  # of many types: the hub's, the network's, and those of broken files
        raise ValueError(
            f"could not load the tokenizer `{name}` ({first_line(error)}). Check the name and the network, or set"
            " `data.tokenizer_name` to a local folder"
        ) from error
    if not tokenizer.is_fast:
        raise ValueError(f"the tokenizer `{name}` has no fast version, which smollit needs")
    return tokenizer
