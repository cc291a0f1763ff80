"""A module from a checkpoint alone: its settings, also those of version 0.1, and the folder of its model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smollit.losses.settings import from_version_0_1
from smollit.models.checkpoint import read

REMOVED = ("weights",)  # arguments in version 0.1
FOLDERS = ("model_name", "reference_name")


def saved_settings(path: Path, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A checkpoint, and the arguments of the module that wrote it.

    Args:
        path: The checkpoint.
        given: Arguments that replace the saved ones. A new `model_name` is the reference's too, if they were the same.

    Raises:
        ValueError: If no module of smollit wrote it.
    """
    checkpoint = read(path)
    if "hyper_parameters" not in checkpoint:
        raise ValueError(f"{path} holds no settings of a module: give a checkpoint that `smollit fit` wrote")
    saved = from_version_0_1(checkpoint["hyper_parameters"])
    settings = {key: value for key, value in saved.items() if not key.startswith("_") and key not in REMOVED}
    if settings.get("reference_name") == settings["model_name"]:
        settings["reference_name"] = None
    found = {name: near(settings[name], path) for name in FOLDERS if settings.get(name)}
    return checkpoint, {**settings, **found, **given}


def near(name: str, path: Path) -> str:
    """The folder that a relative name meant where the run was started: a folder above the checkpoint.

    A name on the Hub, and a folder that is not found, stay as they are.
    """
    if Path(name).expanduser().is_dir():
        return name
    above = (parent / name for parent in path.resolve().parents)
    return next((str(folder) for folder in above if folder.is_dir()), name)
