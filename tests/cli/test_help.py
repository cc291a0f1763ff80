"""`--help`: there at once, and a text for every setting. The list of settings is frozen in tests/settings.txt."""

import difflib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from inspect import signature
from pathlib import Path
from typing import NamedTuple

import pytest

import callbacks
from smollit import __version__
from smollit.cli.parser import SmollitParser
from smollit.commands import COMMANDS, find
from smollit.commands.command import FolderCommand
from smollit.data import ChatDataModule, Part, PreferenceDataModule, UltraChatDataModule, UltraFeedbackDataModule
from smollit.losses import DPO, IPO, NLL, Hinge
from smollit.main import main
from smollit.modules import DPOModule, SFTModule
from smollit.training import SmollitTrainer

ROOT = Path(__file__).parents[2]
FROZEN = ROOT / "tests" / "settings.txt"
OPTION = re.compile(r"^  (?:-\w \w+, )?--(?P<name>[\w.]+)(?P<rest>.*(?:\n {10,}\S.*)*)", re.MULTILINE)
DETAILS = re.compile(
    r"\((?:required, )?type: (?P<type>.*?)(?:, default: (?P<default>.*?))?(?:, known subclasses: .*)?\)$"
)
# Classes that ship with smollit, and the words that show the help of each.
DATA = (ChatDataModule, PreferenceDataModule, UltraChatDataModule, UltraFeedbackDataModule)
CLASSES = {
    **{known: ("--model.help", known.__name__) for known in (SFTModule, DPOModule)},
    **{known: ("--data.help", known.__name__) for known in DATA},
    **{vars(callbacks)[name]: ("--trainer.callbacks.help", f"callbacks.{name}") for name in callbacks.__all__},
}
# The list has what a class adds to its base.
BASES = {DPOModule: SFTModule, IPO: DPO, Hinge: DPO} | dict.fromkeys(DATA[1:], ChatDataModule)
SHIPPED = [*CLASSES, DPO, IPO, Hinge, NLL, Part]
Help = Callable[..., str]


class Setting(NamedTuple):
    """The text of a setting in `--help`."""

    name: str
    text: str
    type: str
    default: str


@pytest.fixture
def help_of(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Help:
    """help_of(*words) is what a command prints, in lines that are not wrapped."""
    monkeypatch.setenv("COLUMNS", "100000")

    def read(*words: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit, match="0"):
            main(words)
        return capsys.readouterr().out

    return read


def settings(text: str) -> Iterator[Setting]:
    """The settings in a help text, without the ones that only show help."""
    for option in OPTION.finditer(text):
        said = " ".join((option["rest"].partition("\n")[2] or option["rest"]).split())
        if details := DETAILS.search(said):
            yield Setting(option["name"], said[: details.start()].strip(), details["type"], details["default"] or "-")


def of_class(help_of: Help, known: type) -> dict[str, Setting]:
    """The settings of a class, by name: of one that is no section of the config, from a separate parser."""
    if known in CLASSES:
        text = help_of("fit", *CLASSES[known])
        return {setting.name.rpartition(".")[2]: setting for setting in settings(text)}
    parser = SmollitParser(prog="smollit")
    parser.add_class_arguments(known)
    return {setting.name: setting for setting in settings(parser.format_help())}


def lines_of(title: str, found: dict[str, Setting], base: dict[str, Setting] | None = None) -> list[str]:
    """One line per setting with its type and default; with a base, those that differ from it."""
    lines = {name: f"{title}{name}: {setting.type} = {setting.default}" for name, setting in found.items()}
    if base is None:
        return list(lines.values())
    same = {name for name in found if name in base and found[name][2:] == base[name][2:]}
    lost = [f"{title}{name}: not a setting" for name in base if name not in found]
    return [line for name, line in lines.items() if name not in same] + lost


def of_commands(help_of: Help) -> Iterator[tuple[str, dict[str, Setting]]]:
    """The arguments of each command, and the trainer's own."""
    for command in COMMANDS:
        own = signature(find([command])).parameters
        found = {setting.name: setting for setting in settings(help_of(command, "--help"))}
        yield f"{command} --", {name: found[name] for name in own if name != "folders"}
    own = signature(SmollitTrainer).parameters
    found = {setting.name: setting for setting in settings(help_of("fit", "--help"))}
    found = {name: found[f"trainer.{name}"] for name in own if f"trainer.{name}" in found}
    yield "SmollitTrainer.", found


# promise: every-setting
def test_the_list_of_settings_is_frozen(help_of: Help) -> None:
    """A setting that comes, goes, or has another type or default changes what users' configs mean: it shows here."""
    lines = [line for title, found in of_commands(help_of) for line in lines_of(title, found)]
    for known in SHIPPED:
        base = of_class(help_of, BASES[known]) if known in BASES else None
        lines += lines_of(f"{known.__name__}.", of_class(help_of, known), base)
    frozen = FROZEN.read_text(encoding="utf-8").splitlines()
    if os.environ.get("SMOLLIT_FREEZE_SETTINGS"):
        FROZEN.write_text("\n".join(lines) + "\n", encoding="utf-8")
    changed = "\n".join(line for line in difflib.ndiff(frozen, lines) if line[0] in "+-")
    assert not changed, f"{changed}\nIf this is meant: SMOLLIT_FREEZE_SETTINGS=1 python -m pytest {__file__}"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_explains_all_and_says_where_the_rest_is(help_of: Help, command: str) -> None:
    """What it does, its own arguments, then how to see those of model and data, and at last the trainer."""
    text = help_of(command, "--help")
    assert [setting.name for setting in settings(text) if len(setting.text) < 10] == []
    summary = COMMANDS[command].summary
    known = find([command])
    of_a_config = ["--ckpt_path", "--model.help", "--data.help", "--trainer."]
    parts = [known.operands[2]] if issubclass(known, FolderCommand) else of_a_config
    order = [text.index(part) for part in (summary, *parts)]
    assert order == sorted(order)


# case: D4
# promise: every-setting
@pytest.mark.parametrize("known", SHIPPED, ids=lambda known: known.__name__)
def test_every_setting_of_a_class_is_explained(help_of: Help, known: type) -> None:
    """Modules, data modules, parts, losses and callbacks."""
    found = of_class(help_of, known)
    assert set(signature(known).parameters) - {"options", "self"} <= set(found)
    assert [name for name, setting in found.items() if len(setting.text) < 10] == []


# ---- as a program


def program(*words: str) -> str:
    """What a new process prints, and which heavy libraries it loaded."""
    script = (
        "import runpy, sys; sys.argv[0] = 'smollit'; runpy.run_module('smollit', run_name='__main__');"
        "print(sorted({'torch', 'lightning', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", script, *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("words", [[], ["-h"], ["--help"]])
def test_the_overview_is_there_at_once(words: list[str]) -> None:
    """No torch, no lightning; each command with the first line of what it does, as its own --help has it."""
    *lines, loaded = program(*words).splitlines()
    listed = dict(line.strip().split(maxsplit=1) for line in lines if line.startswith("  ") and "python" not in line)
    assert loaded == "[]"
    assert listed == {name: (find([name]).__doc__ or "").splitlines()[0] for name in COMMANDS}


def test_the_version_is_there_at_once() -> None:
    assert program("--version").splitlines() == [f"smollit {__version__}", "[]"]
