"""LoggerParser: `trainer.logger` by name, with the run folder as its folder, and as the same run after a resume."""

import re
import sys
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from smollit.cli.config_yaml import dump, load
from smollit.training.logs.loggers import keys_of, known_versions

SHORT = {
    "csv": "CSVLogger",
    "tensorboard": "TensorBoardLogger",
    "wandb": "WandbLogger",
    "mlflow": "MLFlowLogger",
    "comet": "CometLogger",
}
PACKAGES = {"WandbLogger": "wandb", "MLFlowLogger": "mlflow", "CometLogger": "comet_ml", "LitLogger": "litlogger"}
ID_OF_RUN = {"WandbLogger": "id", "MLFlowLogger": "run_id"}
FLAG = re.compile(r"--trainer\.logger\+?(=.*)?", re.S)


class LoggerParser(LightningArgumentParser):
    """LightningArgumentParser that takes short names of loggers, and needs no folder for them."""

    def add_class_arguments(self, theclass: type, *args: Any, **options: Any) -> list[str]:
        """Add the arguments of a class; `save_dir` of a logger is the run folder, unless it is set."""
        is_logger = isinstance(theclass, type) and issubclass(theclass, Logger)
        if not is_logger or "save_dir" not in signature(theclass).parameters:
            return super().add_class_arguments(theclass, *args, **options)
        options["skip"] = {*options.get("skip", ()), "save_dir"}
        added = super().add_class_arguments(theclass, *args, **options)
        self.add_argument("--save_dir", type=str | None, default=None, help="Folder; null is the run folder.")
        if issubclass(theclass, CSVLogger | TensorBoardLogger):  # no lightning_logs/version_n below it
            self.set_defaults({"name": "", "version": ""})
        if issubclass(theclass, TensorBoardLogger):  # no hp_metric of -1 in every run
            self.set_defaults({"default_hp_metric": False})
        return added


def with_full_names(config: Any) -> Any:
    """A config as it was read, with the class names of loggers that have a short name."""
    trainer = config.get("trainer") if isinstance(config, dict) else None
    for key in ("logger", "logger+"):
        if isinstance(trainer, dict) and key in trainer:
            trainer[key] = _full(trainer[key])
    return config


def words_with_full_names(words: list[str]) -> list[str]:
    """The same for the words of a command line."""
    found = []
    for before, word in zip(["", *words], words, strict=False):
        if word.startswith("--trainer.logger") and FLAG.fullmatch(word):
            flag, equals, value = word.partition("=")
            found.append(flag + equals + _full_in_text(value))
        else:
            found.append(_full_in_text(word) if FLAG.fullmatch(before) and "=" not in before else word)
    return found


def complete_loggers(trainer: Namespace, *, resumes: bool) -> None:
    """Set the folder of each logger, and its id if the run is resumed, unless the user did.

    Args:
        trainer: The trainer's settings.
        resumes: Whether a checkpoint is loaded: then W&B and MLflow add to the run that they have.

    Raises:
        ValueError: If the package of a logger is not installed, or the table of the run would have other names.
    """
    folder = str(trainer.default_root_dir or Path.cwd())
    versions = known_versions(Path(folder)) if resumes else {}
    given = trainer.logger if isinstance(trainer.logger, list) else [trainer.logger]
    loggers = [logger for logger in given if isinstance(logger, Namespace)]
    names = [logger.class_path.rpartition(".")[2] for logger in loggers]
    for logger, name, version in zip(loggers, names, map(versions.get, keys_of(names)), strict=True):
        package = PACKAGES.get(name, "lightning")
        if package not in sys.modules and find_spec(package) is None:
            raise ValueError(
                f"`trainer.logger`: {name} needs the package {package}, which is not installed: pip install {package}"
            )
        settings = logger.get("init_args", Namespace())
        if name == "CSVLogger" and settings.get("prefix") and not settings.get("name"):
            raise ValueError(
                "`trainer.logger.prefix` would change the names in metrics.csv of the run folder, which `report` reads:"
                " set `trainer.logger.name` too, for a folder of its own"
            )
        if "save_dir" in settings and settings.save_dir is None:
            settings.save_dir = str(Path(folder) / "mlruns") if name == "MLFlowLogger" else folder
        key = ID_OF_RUN.get(name)
        if key and settings.get(key) is None and version is not None:
            settings[key] = version


def _full(value: Any) -> Any:
    if isinstance(value, str):
        return SHORT.get(value.lower(), value)
    if isinstance(value, list):
        return [_full(entry) for entry in value]
    if isinstance(value, dict) and "class_path" in value:
        return value | {"class_path": _full(value["class_path"])}
    return value


def _full_in_text(value: str) -> str:
    """The value of a word: where it is a list or has settings, their own values stay, whatever they are called."""
    try:
        given = load(value)
    except yaml.YAMLError:  # the parser says so
        return value
    full = _full(given)
    if full == given:
        return value
    return full if isinstance(full, str) else dump(full, in_one_line=True)
