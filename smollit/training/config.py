"""Settings: config.yaml kept per run, unknown keys answered with the nearest name, None read as null."""

import difflib
import inspect
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback
from torch.optim import AdamW

KEY = re.compile(r"[\w.]*[a-z_]{3,}[\w.]*")


class SmollitParser(LightningArgumentParser):
    """LightningArgumentParser whose errors name the nearest valid key."""

    known: tuple[type, ...] = (AdamW,)  # classes whose arguments may stand in a config

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:  # type: ignore[override]
        """Print the error with a suggestion, and exit with 2."""
        super().error(f"{message}{self.suggestion(message)}", ex)

    def suggestion(self, message: str) -> str:
        """`. Did you mean ...?` for the first unknown key in the message, or nothing."""
        if not re.search(r"not expected|[Uu]nrecognized|[Nn]o action|does not exist|[Uu]nexpected|not accepted", message):
            return ""
        names = self.valid_names()
        for key in KEY.findall(message):
            name = key.rpartition(".")[2]
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.75)
            if near and name not in names:
                return f"\nThere is no {name!r}. Did you mean {near[0]!r}?"
        return ""

    def valid_names(self) -> set[str]:
        """Last parts of all keys that a config may hold."""
        names = {action.dest.rpartition(".")[2] for action in self._actions}
        for known in self.known:
            for base in known.__mro__:
                if "__init__" in vars(base):
                    names |= set(inspect.signature(vars(base)["__init__"]).parameters)
        return names - {"self", "options", "args", "kwargs"}


class RunConfigCallback(SaveConfigCallback):
    """Writes config.yaml into the run's folder; later starts in the same folder write config-resume-N.yaml."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save the settings of a fit, once; nothing is overwritten and nothing is refused."""
        if self.already_saved or stage != "fit":
            return
        self.already_saved = True
        if trainer.is_global_zero:
            folder = Path(trainer.default_root_dir)
            folder.mkdir(parents=True, exist_ok=True)
            self.parser.save(self.config, str(free_name(folder)), skip_none=False, overwrite=False, multifile=False)


def free_name(folder: Path) -> Path:
    """config.yaml, or the first config-resume-N.yaml that does not exist yet."""
    path, number = folder / "config.yaml", 0
    while path.exists():
        number += 1
        path = folder / f"config-resume-{number}.yaml"
    return path


def none_to_null(args: Iterable[str]) -> list[str]:
    """On the command line, `--x=None` and `--x None` mean null, as `--x=null` does."""
    return [re.sub(r"(^|=)None$", r"\1null", argument) for argument in args]


def without_none_texts(value: Any) -> Any:
    """In a config, the text `None` means null: YAML itself knows only `null` and `~`."""
    if isinstance(value, dict):
        return {key: without_none_texts(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [without_none_texts(entry) for entry in value]
    return None if value == "None" else value
