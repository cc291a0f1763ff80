"""Writes configs/schema.json, the JSON Schema of a config for editors, and configs/completion.bash for shells.

Both are made of the signatures and docstrings that `--help` shows. Run: python docs/make_schema.py.
"""

import inspect
import json
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import docstring_parser

import callbacks
from smollit.choices import Choice
from smollit.cli.parser import arguments
from smollit.commands import COMMANDS, find
from smollit.commands.command import Command, FolderCommand
from smollit.data import ChatDataModule, PreferenceDataModule, UltraChatDataModule, UltraFeedbackDataModule
from smollit.losses.settings import LOSS
from smollit.modules import DPOModule, SFTModule
from smollit.schedules import SCHEDULE
from smollit.training import SmollitTrainer

Schema = dict[str, Any]
MODELS = (SFTModule, DPOModule)
DATA = (ChatDataModule, PreferenceDataModule, UltraChatDataModule, UltraFeedbackDataModule)
PLAIN = {bool: "boolean", int: "integer", float: "number", str: "string", Path: "string", type(None): "null"}
CHOICES = {"loss": LOSS, "schedule": SCHEDULE}  # settings that name a class by a short name too


def schema_of(kind: Any) -> Schema:
    """The schema of a type; what JSON has no word for may be anything."""
    if kind in PLAIN:
        return {"type": PLAIN[kind]}
    origin, args = get_origin(kind), get_args(kind)
    if origin is Literal:
        return {"enum": list(args)}
    if origin in (Union, types.UnionType):
        return {"anyOf": [schema_of(each) for each in args]}
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {"type": "object"}
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return {"type": "array", "items": schema_of(args[0]) if args else {}}
    return {"type": "string"} if origin is PathLike or kind is PathLike else {}


def settings(known: type) -> Schema:
    """The settings of a class and of the bases to which it passes `**options`, each with its help."""
    found: Schema = {}
    for base, parameter in arguments(known):
        if base.__module__.startswith(("smollit", "callbacks", "lightning")) and parameter.name not in found:
            found[parameter.name] = setting(parameter, kinds_of(base).get(parameter.name), descriptions(base))
    return found


@cache
def kinds_of(known: type) -> dict[str, Any]:
    """The type of each argument of a constructor."""
    return typing.get_type_hints(vars(known)["__init__"])


def setting(parameter: inspect.Parameter, kind: Any, helps: Mapping[str, str]) -> Schema:
    """One setting: its type, help and default."""
    choice = CHOICES.get(parameter.name)
    described = class_or_name(short_names(choice)) if choice else schema_of(kind)
    described |= {"description": helps[parameter.name]} if parameter.name in helps else {}
    plain = parameter.default is None or type(parameter.default) in PLAIN
    return described | ({"default": parameter.default} if plain and parameter.default == parameter.default else {})


@cache
def descriptions(known: type) -> dict[str, str]:
    """The help of each argument, from the docstring of the class or of its constructor."""
    texts = (known.__doc__ or "", known.__init__.__doc__ or "")
    parts = [part for text in texts for part in docstring_parser.parse(text).params]
    return {part.arg_name: " ".join((part.description or "").split()) for part in parts}


def short_names(choice: Choice) -> list[str]:
    """The classes that ship, and their other names."""
    shipped = {name for name, known in vars(choice.shipped).items() if isinstance(known, type)}
    concrete = {name for name in shipped if issubclass(vars(choice.shipped)[name], choice.families)}
    return [*(name for name in concrete if not inspect.isabstract(vars(choice.shipped)[name])), *choice.aliases]


def class_or_name(names: Sequence[str]) -> Schema:
    """A short name, a class_path, or a class with its arguments."""
    by_name = {"anyOf": [{"enum": sorted(names)}, {"type": "string"}]}
    return {"anyOf": [by_name, {"type": "null"}, configured({}, by_name)]}


def configured(init_args: Schema, class_path: Schema) -> Schema:
    """class_path and init_args."""
    properties = {"class_path": class_path, "init_args": {"type": "object"} | init_args}
    return {"type": "object", "properties": properties, "additionalProperties": True}


def section(classes: Sequence[type]) -> Schema:
    """`model` or `data`: the settings of the class that is named, of all of them where an overlay names none."""
    paths = {known: [known.__name__, f"{known.__module__.rpartition('.')[0]}.{known.__name__}"] for known in classes}
    every: Schema = {}
    for known in classes:
        every |= {name: each for name, each in settings(known).items() if name not in every}
    shipped = [path for group in paths.values() for path in group]
    cases = [
        {
            "if": {"properties": {"class_path": {"enum": names}}, "required": ["class_path"]},
            "then": {"properties": {"init_args": {"properties": settings(known), "additionalProperties": False}}},
        }
        for known, names in paths.items()
    ]
    overlay = {
        "if": {"not": {"required": ["class_path"]}},
        "then": {"properties": {"init_args": {"properties": every, "additionalProperties": False}}},
    }
    return configured({}, {"anyOf": [{"enum": shipped}, {"type": "string"}]}) | {"allOf": [*cases, overlay]}


def commands() -> Iterator[tuple[str, list[str]]]:
    """Each command with the names of its own arguments."""
    for name in COMMANDS:
        command = find([name])
        assert is_dataclass(command)
        yield name, [each.name for each in fields(command) if each.name not in ("folders", "swept")]


def schema() -> Schema:
    """The schema of a config, which serves all commands."""
    of_commands: Schema = {}
    for name in COMMANDS:
        command = find([name])
        if not issubclass(command, FolderCommand):
            for own, described in settings_of_command(command).items():
                same = of_commands.get(own) in (None, described)
                of_commands[own] = described if same else {"description": "Of a command: see its --help."}
    trainer = settings(SmollitTrainer)
    trainer["callbacks"] = {"description": f"A list of callbacks, such as callbacks.{callbacks.__all__[0]}."}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "A config of smollit",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            **of_commands,
            "seed_everything": {"type": ["boolean", "integer"], "description": "Seed of all random numbers."},
            "model": section(MODELS),
            "data": section(DATA),
            "trainer": {"type": "object", "properties": trainer, "additionalProperties": False},
        },
    }


def settings_of_command(command: type[Command]) -> Schema:
    """The arguments of a command, which a config may hold too."""
    helps, kinds = descriptions(command), typing.get_type_hints(command)
    parameters = inspect.signature(command).parameters.values()
    return {each.name: setting(each, kinds[each.name], helps) for each in parameters}


def completion() -> str:
    """A script for bash (and zsh, after `bashcompinit`) that completes commands, settings and files."""
    model = {name for known in MODELS for name in settings(known)}
    data = {name for known in DATA for name in settings(known)}
    dotted = [*(f"--model.{name}" for name in sorted(model)), *(f"--data.{name}" for name in sorted(data))]
    dotted += [f"--trainer.{name}" for name in sorted(settings(SmollitTrainer))]
    cases = [
        f'    {name}) words="{" ".join(f"--{each}" for each in own)}'
        + ("" if issubclass(find([name]), FolderCommand) else " --config $settings")
        + '" ;;'
        for name, own in commands()
    ]
    return COMPLETION.format(commands=" ".join(COMMANDS), settings=" ".join(dotted), cases="\n".join(cases))


COMPLETION = """# Completion of smollit's commands and settings. Written by docs/make_schema.py.
# bash: source this file in ~/.bashrc; zsh: autoload -U bashcompinit && bashcompinit, then the same.
_smollit() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" words="" settings="{settings}"
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "{commands}" -- "$word"))
    return
  fi
  case "${{COMP_WORDS[1]}}" in
{cases}
  esac
  case "$word" in
    -*) COMPREPLY=($(compgen -W "$words --help" -- "$word")) ;;
    *) COMPREPLY=($(compgen -f -- "$word")) ;;
  esac
}}
complete -o filenames -F _smollit smollit
"""


def pages() -> dict[str, str]:
    """The content of both files, by their names in configs/."""
    return {"schema.json": json.dumps(schema(), indent=1) + "\n", "completion.bash": completion()}


if __name__ == "__main__":
    folder = Path(__file__).parents[1]
    for page, text in pages().items():
        (folder / "configs" / page).write_text(text, encoding="utf-8")
