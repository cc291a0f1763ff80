"""Settings: config.yaml kept per run, unknown keys answered with the nearest name, None read as null."""

import argparse
import difflib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from pydoc import locate
from types import NoneType
from typing import IO, Any, NoReturn, get_args, get_type_hints

import yaml
from jsonargparse import set_loader
from jsonargparse._loaders_dumpers import get_yaml_default_loader, yaml_load
from jsonargparse._typehints import ActionTypeHint
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback

UNKNOWN = re.compile(r"(?:Option|option|unrecognized arguments:|Key) '?-*([\w.]+)'?")
PARENT = re.compile(r'Parser key "([\w.]+)"')


class SmollitParser(LightningArgumentParser):
    """LightningArgumentParser whose errors are short, and name an unknown key in full with the nearest valid one."""

    def add_subclass_arguments(self, *args: Any, **options: Any) -> None:
        """As jsonargparse, but a text that names a file stays a text.

        Where a setting may be a text or a list of parts, `dataset: chats.csv` would become the file's content.
        """
        super().add_subclass_arguments(*args, **options)
        for action in self._actions:
            if isinstance(action, ActionTypeHint) and "sub_configs" in (getattr(action, "sub_add_kwargs", None) or {}):
                action.sub_add_kwargs["sub_configs"] = False

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the error with a suggestion, and exit with 2."""
        super().error(self.explain(message), ex)

    def explain(self, message: str) -> str:
        """`model.lerning_rate`: there is no such setting, and the nearest name; other errors as they are."""
        known = re.search(r"`[\w.]+`: there is no such setting(\. Did you mean `[\w.]+`\?)?", message)
        if known:  # said by the parser of a class inside this one: only the way to it is missing
            keys = [*PARENT.findall(message[: known.start()]), known[0][1 : known[0].index("`", 1)]]
            return "`" + ".".join(keys) + known[0][known[0].index("`", 1) :]
        if not re.search(r"not accept|unrecognized arguments|not expected", message):
            return message
        found = UNKNOWN.search(message)
        if found is None:
            return message
        return f"`{found[1]}`: there is no such setting{self.suggestion(found[1])}"

    def suggestion(self, key: str) -> str:
        """`. Did you mean ...?`, or nothing if no name is near."""
        near = difflib.get_close_matches(key, sorted(set(names(self))), n=1, cutoff=0.7)
        return f". Did you mean `{near[0]}`?" if near else ""

    def print_usage(self, file: IO[str] | None = None) -> None:  # type: ignore[override]
        """One line: the list of all settings would push the error off the screen."""
        print(f"usage: {self.prog.replace(' [options]', '')} [options]", file=file or sys.stdout)


def names(parser: argparse.ArgumentParser) -> Iterator[str]:
    """All keys of a parser and of its subcommands."""
    for action in parser._actions:
        yield action.dest
        if isinstance(action, argparse._SubParsersAction):
            for subparser in action.choices.values():
                yield from names(subparser)


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


def read_none_as_null() -> None:
    """In YAML and on the command line a plain None means null, as `null` and `~` do; a quoted "None" stays a text."""
    get_yaml_default_loader().add_implicit_resolver("tag:yaml.org,2002:null", re.compile("^None$"), ["N"])
    set_loader("yaml", yaml_load, (yaml.YAMLError,))


def check_nulls(class_path: str, settings: dict[str, Any], where: str) -> None:
    """Refuse a null where the class wants a value: jsonargparse lets it pass.

    Raises:
        ValueError: Names the setting and what it must be.
    """
    found = locate(class_path)
    classes = found.__mro__ if isinstance(found, type) else ()
    for name in (name for name, value in settings.items() if value is None):
        hints = (get_type_hints(vars(known).get("__init__", object)).get(name) for known in classes)
        hint = next((hint for hint in hints if hint is not None), None)
        if hint is not None and NoneType not in get_args(hint):
            expected = getattr(hint, "__name__", hint)
            raise ValueError(f"`{where}.{name}` can't be null: expected {expected}")
