"""Which checkpoint `ckpt_path` means: the newest, the best, or a path; the error for a bad one names a good one."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy, Strategy

from smollit.errors import first_line
from smollit.models.checkpoint import read, verify
from smollit.models.shards import EXTRAS, METADATA
from smollit.training.checkpoints.lineage import checkpoints, lineage_of

log = logging.getLogger(__name__)
FOLDER = "checkpoints"  # in the run folder
BEST = "best.ckpt"  # the file of `trainer.keep_best`


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the last step, or None."""
    return next(iter(checkpoints(folder)), None)


def best_checkpoint(callbacks: Iterable[Callback], folder: Path) -> Path | None:
    """The best checkpoint by a metric: of `trainer.keep_best`, else of a ModelCheckpoint of this process or noted in
    the folder's newest file."""
    newest, own = latest_checkpoint(folder), folder / BEST
    if best_record(own) and newest and _is_of_the_same_run(own, newest):
        return own
    for callback in callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.best_model_path:
            return Path(callback.best_model_path)
    states = check_readable(newest).get("callbacks", {}).values() if newest else ()
    noted = [state["best_model_path"] for state in states if isinstance(state, dict) and state.get("best_model_path")]
    for path in map(Path, noted):
        own = folder / path.name  # the run folder may have been moved, or copied and the first one used again
        if newest is not None and own.exists() and _is_of_the_same_run(own, newest):
            return own
        if path.exists():
            return path
    return None


def best_record(path: Path) -> dict[str, Any]:
    """Metric and value for which `trainer.keep_best` saved a checkpoint; empty for any other file.

    Raises:
        ValueError: If the file is damaged.
    """
    return check_readable(path).get("best", {}) if path.exists() else {}


def find_checkpoint(ckpt_path: str | Path, folder: Path, callbacks: Iterable[Callback] = ()) -> Path:
    """The file that `ckpt_path` means, verified.

    Args:
        ckpt_path: A path; `last` is the newest of the folder, `best` the one that `trainer.keep_best` or a
            ModelCheckpoint keeps.
        folder: The checkpoints of the run.
        callbacks: The callbacks of the run.

    Raises:
        ValueError: If it is missing or damaged, or the run has no such checkpoint.
    """
    if "://" in str(ckpt_path):
        raise ValueError(f"`ckpt_path` is {ckpt_path}, and a checkpoint must be a local file: copy it from there")
    if ckpt_path == "last":
        path = latest_checkpoint(folder)
    else:
        path = best_checkpoint(callbacks, folder) if ckpt_path == "best" else Path(ckpt_path)
    if path is None:
        raise ValueError(
            f"there is no `{ckpt_path}` checkpoint in {folder.absolute()}: train first"
            f"{' with `trainer.keep_best` set to a metric' if ckpt_path == 'best' else ''}, or set `ckpt_path`"
            " to a file"
        )
    check_readable(path)
    check_whole(path)
    if ckpt_path in ("last", "best"):
        log.info("`%s` is %s", ckpt_path, describe(path))
    return path


def describe(path: Path) -> str:
    """A checkpoint with its step, and the metric that made it the best."""
    lineage, best = lineage_of(path), best_record(path)
    step = f" of step {lineage.step:.0f}" if lineage else ""
    return f"{path}{step}" + (f" ({best['metric']} {best['value']:.4g})" if best else "")


def resume_path(ckpt_path: str | Path | None, folder: Path, callbacks: Iterable[Callback]) -> str | None:
    """The file that a fit resumes from, or None for a new run: `last` starts one where there is no checkpoint yet.

    Raises:
        ValueError: If the file is missing, damaged, or holds only weights, or is asked for as `best`.
    """
    newest = latest_checkpoint(folder)
    if ckpt_path == "best":
        raise ValueError(
            "a run resumes from where it was: set `ckpt_path` to `last`, or to the path of a checkpoint. To begin a"
            " new run with the best weights, set `model.init_from` to their path"
        )
    if ckpt_path is None and newest is not None:
        log.warning("%s holds checkpoints of an earlier run: a new run replaces them", folder)
    if ckpt_path == "last":
        _name_newer(folder.parent.glob("hpc_ckpt_*.ckpt"), newest)
    if ckpt_path is None or (ckpt_path == "last" and newest is None):
        return None
    path = find_checkpoint(ckpt_path, folder, callbacks)
    check_resumable(path)
    return str(path)


def _name_newer(of_slurm: Iterable[Path], path: Path | None) -> None:
    """Name what Lightning saved at SLURM's SIGUSR1 after a checkpoint: no run resumes from it by itself."""
    step = lineage.step if path and (lineage := lineage_of(path)) else 0
    for other in of_slurm:
        if (lineage := lineage_of(other)) and lineage.step > step:
            log.warning("%s is newer, of step %.0f: to resume from it, set `ckpt_path` to it", other, lineage.step)


def check_readable(path: str | Path) -> dict[str, Any]:
    """The contents of a checkpoint, with its tensors left on the disk; of a folder of shards, all but what is sharded.

    Raises:
        ValueError: If it is missing or can't be read; names the newest good one in its folder.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"`ckpt_path` is {path}, and there is no such file: give a .ckpt file, `last`, or null")
    if path.is_dir() and not any((path / name).exists() for name in (METADATA, EXTRAS)):
        raise ValueError(
            f"`ckpt_path` is the folder {path}, which is no checkpoint: give a .ckpt file, or `last` for the newest"
            " one of the run in `trainer.default_root_dir`"
        )
    try:
        return read(path)
    except Exception as error:  # torch raises a dozen types for a file that is truncated or of another kind
        raise _damaged(path, error) from error


def check_whole(path: Path) -> None:
    """Compare a checkpoint with its checksums.

    Raises:
        ValueError: If a byte has changed; names the newest good one in its folder.
    """
    try:
        verify(path)
    except Exception as error:
        raise _damaged(path, error) from error


def check_resumable(path: str | Path) -> None:
    """Refuse a file that can't be read, or holds only weights.

    Raises:
        ValueError: If the file is missing, can't be read, or has no optimizer state.
    """
    if not _has_optimizer(Path(path), check_readable(path)):
        raise ValueError(
            f"{path} holds only weights, so a run can't resume from it. To start a new run from these weights,"
            " set `model.init_from` to it, and `ckpt_path` to null"
        )


def refuse_shards(path: str | Path | None, strategy: Strategy) -> None:
    """Refuse a folder of shards where the strategy does not read it.

    Raises:
        ValueError: Names the strategies that do.
    """
    if path is not None and Path(path).is_dir() and not isinstance(strategy, FSDPStrategy | ModelParallelStrategy):
        raise ValueError(
            f"{path} is a folder of shards, which only sharded strategies read: set `trainer.strategy` to that of the"
            " run that wrote it, on any number of devices, or begin a new run with `model.init_from` set to the folder"
        )


def newest_whole(folder: Path, besides: Path | None = None) -> Path | None:
    """The newest checkpoint of a folder that is verified and can be resumed from, or None."""
    return next((path for path in checkpoints(folder) if path != besides and is_whole(path)), None)


def _damaged(path: Path, error: Exception) -> ValueError:
    good = newest_whole(path.parent, besides=path)
    advice = f"The newest good one is {good}: set `ckpt_path` to it" if good else "Set `ckpt_path` to null"
    return ValueError(f"`ckpt_path` {path} can't be read as a checkpoint ({first_line(error)}). {advice}")


def is_whole(path: Path) -> bool:
    """Whether a checkpoint is verified and can be resumed from."""
    try:
        verify(path)
        return _has_optimizer(path, read(path))
    except Exception:
        return False


def _has_optimizer(path: Path, checkpoint: dict[str, Any]) -> bool:
    return "optimizer_states" in checkpoint or (path.is_dir() and "global_step" in checkpoint)


def _is_of_the_same_run(best: Path, newest: Path) -> bool:
    of_best, of_newest = lineage_of(best), lineage_of(newest)
    return bool(of_best and of_newest and of_newest.includes(of_best))
