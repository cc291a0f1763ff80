"""From the words after a command on folders to the command."""

from collections.abc import Sequence
from dataclasses import fields
from typing import NoReturn

from jsonargparse import ArgumentParser

from smollit.cli.command_words import command_words
from smollit.cli.wording.problem import take_apart
from smollit.cli.wording.words import expected, shown
from smollit.commands import COMMANDS
from smollit.commands.command import FolderCommand


class FolderParser(ArgumentParser):
    """jsonargparse's parser, with errors of one sentence."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the error as a sentence, and exit with 2."""
        problem = take_apart(message)
        where = f"`{'.'.join(problem.keys)}`: " if problem.keys else ""
        said = f"expected {expected(problem.types)}, got {shown(problem.value)}" if problem.types else problem.text
        if problem.unknown:
            said = f"`{problem.unknown}`: there is no such setting"
        if problem.missing:  # there is nothing else that must be given
            said = f"{problem.missing} is missing: {self.usage}"
        self.exit(2, f"smollit: {where}{said}\n({self.prog} --help lists the settings)\n")


def folder_command(name: str, command: type[FolderCommand], words: Sequence[str]) -> FolderCommand:
    """The command with its folders and settings.

    Raises:
        SystemExit: With code 2 if the words are wrong; with 0 after `--help`.
    """
    nargs, metavar, explained = command.operands
    first = f"{metavar} [{metavar} ...]" if nargs == "+" else f"[{metavar} ...]"
    usage = f"smollit {name} {first} [--SETTING VALUE ...]"
    parser = FolderParser(prog=f"smollit {name}", usage=usage, description=COMMANDS[name].summary)
    parser.add_argument("folders", nargs=nargs, metavar=metavar, help=explained)
    names = parser.add_class_arguments(command, skip={"folders"}, instantiate=False)
    flags = {f"--{field.name}" for field in fields(command) if field.default is False}
    try:
        found = parser.parse_args(command_words(words, flags))
    except ValueError as error:
        parser.error(str(error))
    return command(folders=found.folders, **{name: found[name] for name in names})
