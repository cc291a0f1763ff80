"""Names of models, tokenizers and data sets: a hub id or a local path? (A leaf: the standard library only.)"""

from pathlib import Path


def is_path(name: str) -> bool:
    """Whether a name that does not exist on this disk was meant as a path: `runs/sft/export` and `./x`, not `org/x`."""
    return Path(name).is_absolute() or name.startswith((".", "~", "runs/")) or name.count("/") > 1


def check_folder(name: str, setting: str) -> None:
    """Refuse a model's or tokenizer's folder that is not there.

    Raises:
        ValueError: If `name` is a path, and no folder.
    """
    if not Path(name).is_dir() and is_path(name):
        raise ValueError(
            f"`{setting}` is the folder {name}, which does not exist: check the path"
            " (a DPO run starts from the folder that its SFT run exported)"
        )


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type's name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
