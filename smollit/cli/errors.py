"""Which errors are messages for the user, and which are bugs that need a traceback."""

import errno
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.distributed import DistError

from smollit.cli.parser import argument_names
from smollit.errors import UsageError, first_line

PACKAGE = Path(__file__).parents[1]
OURS = (PACKAGE, PACKAGE.parent / "callbacks")  # both packages of the wheel
# By the folder of a library: the setting that its errors are about.
LIBRARIES = {
    "lightning": "trainer",
    "torch/optim": "model.optimizer",
    "bitsandbytes/optim": "model.optimizer",
    "transformers": "model",
    "peft": "model",
    "tokenizers": "data.tokenizer_name",
    "datasets": "data.dataset",
    "huggingface_hub": "model",
}
RAISED = (ValueError, TypeError, RuntimeError, OSError, ImportError, MisconfigurationException)
DEBUG = "SMOLLIT_TRACEBACK"
# What a file system refuses: wherever it happens, the cause is outside.
OF_DISKS = {
    number
    for name in (
        "ENOSPC",
        "EDQUOT",
        "EFBIG",
        "EROFS",
        "EACCES",
        "EPERM",
        "EIO",
        "EISDIR",
        "ENOTDIR",
        "ENAMETOOLONG",
        "EEXIST",
    )
    if (number := vars(errno).get(name)) is not None
}


# Errors about settings, whenever they come; others may be of the rows, the files or the network.
OF_SETTINGS = ("lightning", "torch/optim", "bitsandbytes/optim")


class Sentence(NamedTuple):
    """What the user reads of an error.

    Args:
        text: One sentence.
        is_usage: Whether the command line or config is wrong, whatever the data, files and network.
    """

    text: str
    is_usage: bool


@contextmanager
def building() -> Iterator[None]:
    """Errors while objects are built from the config are errors of the config.

    Raises:
        UsageError: With the sentence for the user.
    """
    try:
        yield
    except Exception as error:
        said = for_the_user(error)
        if said is None:
            raise
        raise UsageError(said.text) from error


def for_the_user(error: BaseException | None) -> Sentence | None:
    """The sentence for the user, also where another library wrapped the error; None if the error is a bug.

    Messages are what smollit raises itself as a ValueError, and what a library raises on purpose, by a `raise`
    statement of its own. All else, and what is raised in a user's class, keeps its traceback.
    """
    while error is not None:
        if is_lost_rank(error):
            said = first_line(error).partition(". This is typically")[0]  # gloo goes on in general words
            return Sentence(
                f"another process of this run has ended, or can't be reached ({said}): look for its own message."
                " The same command with `ckpt_path: last` resumes from the newest checkpoint",
                is_usage=False,
            )
        if isinstance(error, OSError) and error.errno in OF_DISKS:
            return Sentence(
                f"{error}: make room, set the permissions, or give another folder; the same command goes on"
                f" ({DEBUG}=1 shows where)",
                is_usage=False,
            )
        frames = traceback.extract_tb(error.__traceback__)
        if frames:
            last = frames[-1]
            if isinstance(error, ValueError) and any(map(Path(last.filename).is_relative_to, OURS)):
                return Sentence(str(error), isinstance(error, UsageError))
            library = next((name for name in LIBRARIES if f"/site-packages/{name}/" in last.filename), None)
            if library and isinstance(error, RAISED) and (last.line or "").startswith("raise "):
                setting = _setting(library, last.filename, str(error))
                text = f"{setting}: {_one_line(str(error))} ({DEBUG}=1 shows where)"
                return Sentence(text, library in OF_SETTINGS)
        error = error.__cause__ or error.__context__
    return None


def is_lost_rank(error: BaseException) -> bool:
    """Whether a collective failed because another rank is gone; gloo's errors have no class of their own."""
    return isinstance(error, DistError) or (isinstance(error, RuntimeError) and "gloo/transport" in str(error))


def _setting(library: str, filename: str, message: str) -> str:
    """The setting that a message names first, else the section that the library belongs to."""
    if library != "lightning":
        return f"`{LIBRARIES[library]}`"
    if filename.endswith("utilities/seed.py"):
        return "`seed_everything`"
    if "/callbacks/" in filename:
        return "`trainer.callbacks`"
    names = argument_names(Trainer)
    longer = [name for name in names if "_" in name]
    for each in (rf"`(?:Trainer\()?({'|'.join(names)})\b", rf"\b({'|'.join(longer)})\b"):
        if found := re.search(each, message):
            return f"`trainer.{found[1]}`"
    return "`trainer`"


def _one_line(text: str) -> str:
    return " ".join(text.split()).rstrip(".")
