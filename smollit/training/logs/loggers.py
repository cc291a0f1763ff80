"""The loggers of a run: which, where, and as which run of theirs after a resume."""

import json
from collections.abc import Iterable
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from smollit.paths import read_mapping
from smollit.training.logs.dashboard import RunTensorBoard
from smollit.training.logs.table import use_table

VERSIONS = "loggers.json"


def run_loggers(loggers: list[Logger], folder: Path, *, by_default: bool, resumes: bool) -> list[Logger]:
    """The loggers of a run, the table of its metrics among them; without loggers, there is no table.

    Args:
        loggers: Those of the trainer.
        folder: The run folder.
        by_default: The user asked for none: TensorBoard events go into the run folder itself.
        resumes: Whether a checkpoint follows: a new run does not write into the files of an earlier one.
    """
    if by_default:
        loggers = [RunTensorBoard(folder)]
    versions = known_versions(folder) if resumes else {}
    for logger, key in zip(loggers, keys_of(type(logger).__name__ for logger in loggers), strict=True):
        keep_version(logger, versions.get(key))
    table = CSVLogger(folder, name="", version="")
    folders = [Path(logger.log_dir).resolve() for logger in loggers if isinstance(logger, CSVLogger)]
    if loggers and folder.resolve() not in folders:
        loggers = [*loggers, table]
    for logger in loggers:
        if isinstance(logger, CSVLogger):
            use_table(logger)
    return loggers


def keep_version(logger: Logger, version: int | str | None) -> None:
    """Let a logger continue in the folder that an earlier start of the run wrote, unless the user names a version."""
    if isinstance(logger, CSVLogger | TensorBoardLogger) and logger._version is None and version is not None:
        logger._version = version


def keys_of(names: Iterable[str]) -> list[str]:
    """A key for each logger of a list: the name of its class, and a number if there are several of a class."""
    known: list[str] = []
    for name in names:
        before = sum(key.partition(" ")[0] == name for key in known)
        known.append(f"{name} {before + 1}" if before else name)
    return known


def known_versions(folder: Path) -> dict[str, int | str]:
    """The version, or the id, that each logger of a run folder has, by `keys_of`."""
    return read_mapping(folder / VERSIONS)


def note_versions(folder: Path, loggers: list[Logger]) -> None:
    """Write what `known_versions` reads."""
    keys = keys_of(type(logger).__name__ for logger in loggers)
    found = zip(keys, (logger.version for logger in loggers), strict=True)
    versions = {key: version for key, version in found if version not in (None, "")}
    if versions != known_versions(folder):
        (folder / VERSIONS).write_text(json.dumps(versions) + "\n", encoding="utf-8")
