"""SmollitParser: jsonargparse's parser, with errors that are a sentence and name the nearest valid setting."""

import inspect
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from pydoc import locate
from typing import Any, NoReturn

from jsonargparse import Namespace
from lightning.pytorch import Callback
from torch.optim import Optimizer

from smollit.cli.loss_setting import LossParser, find_sentence
from smollit.cli.wording.other_names import OTHER_NAMES
from smollit.cli.wording.problem import Problem, take_apart
from smollit.cli.wording.words import choices, expected, is_number, nearest, shown
from smollit.data import ChatDataModule, UltraFeedbackDataModule
from smollit.losses import DPO
from smollit.modules import DPOModule, FineTuningModule
from smollit.training import SmollitTrainer

OPERAND = re.compile(r"unrecognized arguments: (?P<word>[^-\s]\S*)")
NO_SETTINGS = re.compile(r"Unexpected config: ?(?P<found>.*)", re.DOTALL)
NO_VALUE = re.compile(r"argument (?P<flag>--[\w.+]+): expected (?:one|at least one) argument")
# By the last part of a setting: the class that its value names.
BASES: dict[str, type] = {
    "model": FineTuningModule,
    "data": ChatDataModule,
    "callbacks": Callback,
    "optimizer": Optimizer,
}
PARTS = (("data", "val_sets"), ("data", "dataset"))  # each part, or set, has settings of its own
# The classes with the most settings: where the name of a setting is looked for.
SECTIONS: dict[str, type] = {
    "model": DPOModule,
    "model.loss": DPO,
    "data": UltraFeedbackDataModule,
    "trainer": SmollitTrainer,
}


class SmollitParser(LossParser):
    """LightningArgumentParser whose errors are a sentence: which setting, what was expected, what came."""

    file = ""  # that is being read

    def parse_path(self, path: str | os.PathLike[str], *args: Any, **options: Any) -> Namespace:
        """Parse a config; an error in it names the file."""
        self.file = os.fspath(path)
        try:
            parsed = super().parse_path(path, *args, **options)
        except UnicodeDecodeError:
            self.error("`config`: the file is not a text in UTF-8")
        self.file = ""
        return parsed

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the error as a sentence, and exit with 2; the parser of a class inside this one leaves that to it."""
        if not self.exit_on_error:
            super().error(message, ex)
        said = self.explain(message)
        place = f"in {self.file}; " if self.file else ""
        tip = "" if "\n" in said else f"({place}{self.prog} --help lists the settings)\n"
        sys.stderr.write(f"smollit: {said}\n{tip}")
        self.exit(2)

    def explain(self, message: str) -> str:
        """An error of jsonargparse as a sentence; one that is not known stays as it is."""
        if sentence := find_sentence(message):
            return sentence
        if (found := OPERAND.search(message)) and (config := config_at(Path(found["word"]))):
            return f"`{found['word']}` stands without a flag: write --config {config}"
        if found := NO_SETTINGS.search(message):
            given = found["found"].strip()
            return f"`config`: expected settings, such as `model`, got {shown(given) if given else 'none'}"
        if found := NO_VALUE.search(message):
            return f"`{found['flag']}`, or a setting inside it, has no value: write --SETTING VALUE"
        problem = take_apart(message)
        if problem.keys in PARTS and (problem.no_class or problem.text.startswith("there is no module")):
            return (
                f"`{'.'.join(problem.keys)}`: expected settings such as {{dataset: chats.jsonl}} for each, got a text"
            )
        where = f"`{'.'.join(problem.keys)}`{_of_callback(problem)}: " if problem.keys else ""
        if problem.unknown:
            return self._unknown(problem)
        if problem.no_class:
            return where + _no_class(problem)
        if problem.types:
            wanted = expected(problem.types)
            near = nearest(problem.value, choices(problem.types))
            quotes = ": put it in quotes" if "text" in wanted and is_number(problem.value) else ""
            return f"{where}expected {wanted}, got {shown(problem.value)}{_did_you_mean(near) or quotes}"
        if problem.missing and problem.owner:
            return f"{where}{_short(problem.owner)} needs a value for {problem.missing}"
        return where + problem.text

    def _unknown(self, problem: Problem) -> str:
        key = ".".join([*problem.keys, problem.unknown])
        of = f" of {_short(problem.owner)}" if is_inner(problem) else ""
        near = self._nearest_setting(problem, key)
        return f"`{key}`: there is no such setting{of}{_did_you_mean(near)}"

    def _nearest_setting(self, problem: Problem, key: str) -> str | None:
        """The most similar setting of its class; else by its name in another tool or section; else the most similar."""
        name = key.rpartition(".")[2]
        known = [*self.get_defaults().keys(), *_all_settings()]
        owner = locate(problem.owner) if problem.owner else None
        own = argument_names(owner) if isinstance(owner, type) else []
        near = nearest(name, own)
        if near:
            return ".".join([*problem.keys, near])
        if is_inner(problem):  # settings of its own kind
            return None
        elsewhere = next((setting for setting in known if setting.rpartition(".")[2] == name), None)
        return OTHER_NAMES.get(name.lower()) or elsewhere or nearest(key, known)


def config_at(path: Path) -> Path | None:
    """The config that a path means: a file, or the config.yaml of a run folder."""
    return next((file for file in (path, path / "config.yaml") if file.is_file()), None)


def is_inner(problem: Problem) -> bool:
    """Whether the setting belongs to a class inside a section of the config."""
    return bool(problem.owner) and problem.keys not in [(name,) for name in SECTIONS]


def arguments(known: type) -> Iterator[tuple[type, inspect.Parameter]]:
    """The arguments of a class and of its bases, to which it passes `**options`, each with the class that has it."""
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    for base in known.__mro__[:-1]:
        if "__init__" in vars(base):
            named = inspect.signature(vars(base)["__init__"]).parameters.values()
            yield from ((base, each) for each in named if each.kind not in kinds and each.name != "self")


def argument_names(known: type) -> list[str]:
    """The names of `arguments`."""
    return [parameter.name for _, parameter in arguments(known)]


def _all_settings() -> Iterator[str]:
    for section, known in SECTIONS.items():
        yield from (f"{section}.{name}" for name in argument_names(known))


def _no_class(problem: Problem) -> str:
    if problem.module:
        names = [name for name, value in vars(sys.modules[problem.module]).items() if isinstance(value, type)]
        near = nearest(problem.no_class, names)
        return f"{problem.module} has no class {problem.no_class}{_did_you_mean(near and f'{problem.module}.{near}')}"
    base = BASES.get(_short(problem.keys[-1]) if problem.keys else "")
    near = nearest(problem.no_class, [known.__name__ for known in _subclasses(base)] if base else [])
    return f"there is no class {problem.no_class}{_did_you_mean(near) or ': give its import path, module.Class'}"


def _of_callback(problem: Problem) -> str:
    """Of several callbacks in a list, which one."""
    return f" of {_short(problem.owner)}" if problem.types and problem.owner and "callbacks" in problem.keys[0] else ""


def _short(class_path: str) -> str:
    return class_path.rpartition(".")[2]


def _subclasses(base: type) -> Iterator[type]:
    direct: list[type] = base.__subclasses__()
    for known in direct:
        yield known
        yield from _subclasses(known)


def _did_you_mean(name: str | None) -> str:
    return f". Did you mean `{name}`?" if name else ""
