"""Which folder an export may replace, and how it is replaced without losing a good one."""

import json
import os
import shutil
import tempfile
from pathlib import Path

from smollit import __version__

MARKER = "smollit_export.json"  # marks a folder as an export, and lists its files


def write_marker(folder: Path, source: str) -> None:
    """Mark the folder as an export, and list its files."""
    files = sorted([MARKER, *(path.name for path in folder.iterdir())])
    about = {"smollit": __version__, "source": source, "files": files}
    (folder / MARKER).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def check_output(output: Path) -> None:
    """Refuse to write over anything that is not an export.

    Raises:
        ValueError: If `output` is a file, or a folder with something in it that no export wrote.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    marker = output / MARKER
    own = set(json.loads(marker.read_text(encoding="utf-8"))["files"]) if marker.is_file() else set()
    foreign = sorted(path.name for path in output.iterdir() if path.name not in own) if output.is_dir() else ["a file"]
    if foreign:
        shown = ", ".join(foreign[:3]) + (", ..." if len(foreign) > 3 else "")
        raise ValueError(
            f"the export folder {output} has files that no earlier export wrote ({shown}), and would be replaced:"
            " give a folder that is empty or new"
        )


def replace_folder(new: Path, target: Path) -> None:
    """Move `new` to `target`; the old folder is removed only after that."""
    if not target.exists():
        os.replace(new, target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent)) / "folder"
    os.replace(target, old)
    try:
        os.replace(new, target)
    except OSError:
        os.replace(old, target)
        raise
    finally:
        shutil.rmtree(old.parent)
