"""The folder of a drill, and the settings of its runs."""

import shutil
from pathlib import Path

import yaml

from smollit.commands.drill.process import Drilled

MARKER = ".drill"  # in the folder of a drill, which the next one empties


def empty_folder(folder: Path) -> Path:
    """The folder of a drill, without what an earlier drill left there.

    Raises:
        ValueError: If it holds something else.
    """
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MARKER).exists():
        raise ValueError(f"{folder} holds files that no drill wrote: set `trainer.default_root_dir` to another folder")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / MARKER).touch()
    return folder


def write_config(folder: Path, settings: str, steps: int) -> Drilled:
    """The settings of the user's run, with few steps and many saves and validations."""
    config = yaml.safe_load(settings)
    config["trainer"] |= {
        "max_steps": steps,
        "max_time": None,
        "log_every_n_steps": 1,
        "checkpoint_every_n_steps": 2,
        "keep_checkpoints": 2,
        "val_every_n_steps": 3,
        "val_check_interval": None,
        "enable_checkpointing": None,
        "limit_val_batches": 4,
        "enable_progress_bar": False,
        "logger": None,
        "fast_dev_run": False,
    }
    model = config["model"]["init_args"]
    if (model.get("num_warmup_steps") or 0) >= steps:  # refused: the warm-up would be the whole run
        model["num_warmup_steps"] = steps // 4
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return Drilled(path, val_every_n_steps=3)
