"""The run folder: a local path that can be written to, tried before anything is loaded."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning.pytorch import Trainer

from smollit.errors import first_line
from smollit.modules.lost_steps import NonFiniteError
from smollit.paths import remove_unfinished
from smollit.training.checkpoints.files import FOLDER, describe
from smollit.training.checkpoints.lock import locked
from smollit.training.checkpoints.saving import newest_finite, remove_leftovers

LOCK = "run.lock"


@contextmanager
def run_folder(trainer: Trainer, *, saves: bool) -> Iterator[None]:
    """Hold the run folder while a run writes to it. Of several ranks, the first holds it for all.

    Args:
        trainer: The trainer of the run.
        saves: Whether checkpoints are saved.

    Raises:
        ValueError: If it can't be written to, or another run holds it.
    """
    if trainer.fast_dev_run or not trainer.is_global_zero:  # type: ignore[attr-defined]
        yield
        return
    root = Path(trainer.default_root_dir)
    made = [folder for folder in (root / FOLDER, root) if not folder.exists()]
    check_writable(root, saves=saves)
    advice = "wait for it, stop it, or set `trainer.default_root_dir` to another folder"
    try:
        with locked(root / LOCK, what=f"the run folder {root}", advice=advice):
            remove_leftovers(root / FOLDER)
            remove_unfinished([*root.glob(".*.tmp"), *root.glob("*/.*.tmp")])
            yield
    except NonFiniteError as error:
        good = newest_finite(root / FOLDER)
        error.args = (f"{error}. The newest finite checkpoint is {describe(good) if good else 'none'}",)
        raise
    finally:
        for folder in made:  # a run that is refused leaves nothing
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def local_folder(root: str | Path | None) -> Path:
    """The run folder as a path, with `~` expanded; null is the current folder.

    Raises:
        ValueError: If it is a URL.
    """
    if root is None:
        return Path.cwd()
    if "://" in str(root):
        raise ValueError(
            f"`trainer.default_root_dir` is {root}, and a run folder must be local: checkpoints are replaced and locked"
            " there. Mount the remote file system, or copy the folder after the run"
        )
    return Path(root).expanduser()


def check_writable(root: Path, *, saves: bool) -> None:
    """Make the run folder and its checkpoints/, and write a byte into each.

    Raises:
        ValueError: If the file system refuses.
    """
    for folder in (root, root / FOLDER) if saves else (root,):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(b"0")
                file.flush()
        except OSError as error:
            raise ValueError(
                f"`trainer.default_root_dir` is {root}, and {folder} can't be written to ({first_line(error)}): set it"
                " to a folder on a disk with room, that you may write to"
            ) from error
