"""Names of models, tokenizers and data sets: a Hub id or a local path?"""

from pathlib import Path


def is_path(name: str) -> bool:
    """Whether a name that does not exist on this disk is meant as a path: `runs/sft/export` and `./x`, not `org/x`."""
    return Path(name).is_absolute() or name.startswith((".", "~", "runs/")) or name.count("/") > 1


def check_folder(name: str, setting: str) -> None:
    """Refuse a model's or tokenizer's folder that does not exist.

    Raises:
        ValueError: If `name` is a path, and not a folder.
    """
    if not Path(name).is_dir() and is_path(name):
        raise ValueError(
            f"`{setting}` is the folder {name}, which does not exist: check the path"
            " (a DPO run starts from the folder that its SFT run exported)"
        )
