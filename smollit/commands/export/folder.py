"""Which folder an export may replace, and how it is replaced without losing a good one."""

import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from smollit.commands.certificate import FILE, changed_files, names_in, read_certificate

log = logging.getLogger(__name__)
SMALL = 1 << 20  # bytes: what people edit by hand


def check_output(output: Path, source: str | None = None) -> None:
    """Refuse to write over anything that is not an export; clean up after killed exports to the same folder.

    Args:
        output: The folder to write.
        source: Hub id or folder of the model that training started from.

    Raises:
        ValueError: If `output` is a file, a folder with something in it that no export wrote, or `source`.
    """
    clean_up(output)
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    foreign = foreign_files(output) if output.is_dir() else ["a file"]
    if foreign:
        shown = ", ".join(foreign[:3]) + (", ..." if len(foreign) > 3 else "")
        raise ValueError(
            f"the export folder {output} has files that no earlier export wrote ({shown}), and would be replaced:"
            " give a folder that is empty or new"
        )
    if source is not None and Path(source).expanduser().resolve() == output.resolve():
        raise ValueError(
            f"the export folder {output} holds the model that training starts from, which a resumed run and the"
            " reference of DPO read again: give another folder"
        )


def foreign_files(folder: Path) -> list[str]:
    """Files of a folder that no export wrote, or that were edited since."""
    certificate = read_certificate(folder)
    if certificate is None:
        return names_in(folder)
    own = {FILE, *certificate["files"]}
    has_hashes = isinstance(certificate["files"], dict)  # not those of version 0.2
    edited = changed_files(folder, certificate, largest=SMALL) if has_hashes else []
    return [name for name in names_in(folder) if name not in own or name in edited]


@contextmanager
def temporary_folder(output: Path) -> Iterator[Path]:
    """A folder beside `output`, removed afterwards if it still exists. One export to `output` at a time.

    Raises:
        ValueError: If another process exports to `output`, or it can't be written.
    """
    lock = _lock(output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
        folder = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    except Timeout as error:
        raise ValueError(f"another process is exporting to {output}: wait for it, or give another folder") from error
    except OSError as error:
        lock.release()
        raise ValueError(f"the export folder {output} can't be written: {error}") from error
    try:
        yield folder
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"the export to {output} failed: {error}. The checkpoints are whole: `python -m smollit export` repeats it"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _release(lock)


def replace_folder(new: Path, target: Path) -> None:
    """Move `new` to `target`; the old folder is removed only after that."""
    if not target.exists():
        os.replace(new, target)
        return
    old = _old(target)
    os.replace(target, old)
    try:
        os.replace(new, target)
    except OSError:
        os.replace(old, target)
        raise
    shutil.rmtree(old)


def clean_up(output: Path) -> None:
    """Remove what killed exports to `output` left, after restoring an export that one had put aside to replace it."""
    left = [
        path for path in output.parent.glob(".*") if re.fullmatch(rf"\.{re.escape(output.name)}-\w{{8}}", path.name)
    ]
    old = _old(output)
    if not left and not old.exists():
        return
    lock = _lock(output)
    try:
        lock.acquire(timeout=0)
    except Timeout:  # they belong to an export that is running
        return
    if old.exists() and not output.exists():
        os.replace(old, output)
    for path in (*left, old):
        shutil.rmtree(path, ignore_errors=True)
    log.info("removed what a killed export left beside %s", output)
    _release(lock)


def _old(output: Path) -> Path:
    return output.with_name(f".{output.name}-old")


def _lock(output: Path) -> FileLock:
    return FileLock(output.with_name(f".{output.name}.lock"))


def _release(lock: FileLock) -> None:
    Path(lock.lock_file).unlink(missing_ok=True)  # while it is held: a process that waits for it notices
    lock.release()
