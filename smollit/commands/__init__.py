"""The commands: their summaries in `python -m smollit --help`, and their classes. Imports the standard library only."""

import difflib
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from smollit.commands.command import Command, FolderCommand


class Entry(NamedTuple):
    """A command: the first line of its class's docstring, and the import path of the class."""

    summary: str
    module: str
    name: str


GROUPS = {
    "train": {
        "fit": Entry("Train, or resume training.", "smollit.commands.lightning", "FitCommand"),
        "sweep": Entry(
            "Train once for each value of a setting, and compare: `--model.learning_rate 1e-6,5e-6,2e-5`.",
            "smollit.commands.sweep.command",
            "SweepCommand",
        ),
    },
    "look": {
        "inspect": Entry(
            "Show rows with their loss tokens, lengths, what was truncated or dropped, and warnings.",
            "smollit.commands.inspect.command",
            "InspectCommand",
        ),
        "estimate": Entry(
            "Show what a run needs: memory by part and whether it fits, tokens, steps, time.",
            "smollit.commands.estimate.command",
            "EstimateCommand",
        ),
        "report": Entry(
            "Say what runs have learned, and write their curves and tables as one page, also while they run.",
            "smollit.commands.report.command",
            "ReportCommand",
        ),
        "drill": Entry(
            "Kill runs of this config at random moments, start them again, and compare them with an unbroken run.",
            "smollit.commands.drill.command",
            "DrillCommand",
        ),
        "replay": Entry(
            "Make one optimizer step of a run again, and show the loss and gradient norm of each of its rows.",
            "smollit.commands.replay.command",
            "ReplayCommand",
        ),
        "diff": Entry(
            "Show the first step at which two runs differ, and how their settings, data, versions and devices differ.",
            "smollit.commands.diff",
            "DiffCommand",
        ),
    },
    "use": {
        "validate": Entry("Measure the validation split.", "smollit.commands.lightning", "ValidateCommand"),
        "test": Entry("Measure the test split.", "smollit.commands.lightning", "TestCommand"),
        "chat": Entry(
            "Talk to a model, or to two of them side by side.", "smollit.commands.chat.command", "ChatCommand"
        ),
        "predict": Entry("Respond to the prompts of a split or file.", "smollit.commands.lightning", "PredictCommand"),
        "score": Entry(
            "Score a model, or compare two: loss, preferences, instructions, sums.",
            "smollit.commands.score.command",
            "ScoreCommand",
        ),
        "export": Entry(
            "Write a checkpoint as a Hugging Face folder, read it back and compare.",
            "smollit.commands.export.command",
            "ExportCommand",
        ),
        "verify": Entry(
            "Check an export: its files, weights, tokenizer, template and stop tokens.",
            "smollit.commands.verify",
            "VerifyCommand",
        ),
    },
    "set up": {
        "init": Entry(
            "Write a commented config into the current folder: sft, dpo, or demo.",
            "smollit.commands.setup.init",
            "InitCommand",
        ),
        "import": Entry(
            "Write the config of TRL, axolotl or LLaMA-Factory, or a TrainingArguments JSON, as a config of smollit.",
            "smollit.commands.imports.command",
            "ImportCommand",
        ),
        "doctor": Entry(
            "Check this machine: versions, device, precision, disk, folders, network.",
            "smollit.commands.setup.doctor",
            "DoctorCommand",
        ),
    },
}
COMMANDS = {name: entry for group in GROUPS.values() for name, entry in group.items()}
HEAD = """usage: smollit <command> --config <file.yaml> [--config <file.yaml> ...] [--setting value ...]

Fine-tune small language models on chats (SFT) and on preferences (DPO), by config alone.
"""
TAIL = """
smollit <command> --help lists a command's settings. Example:
  python -m smollit fit --config configs/sft.yaml --trainer.max_steps 100
"""


def overview() -> str:
    """The text of `--help`, without importing the commands."""
    width = max(map(len, COMMANDS))
    lines = [HEAD]
    for title, group in GROUPS.items():
        lines += [f"\n{title}:\n", *(f"  {name:<{width}}  {entry.summary}\n" for name, entry in group.items())]
    return "".join([*lines, TAIL])


def find(words: Sequence[str]) -> type["Command"] | type["FolderCommand"]:
    """The class of the command that the first word names.

    Raises:
        SystemExit: With code 2 if there is no such command; with 0 after `--help`.
    """
    name = words[0] if words else "--help"
    if name in ("-h", "--help"):
        print(overview(), end="")
        sys.exit(0)
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"Did you mean `{near[0]}`?" if near else f"The commands are {', '.join(COMMANDS)}, and come first."
        print(f"smollit: there is no command `{name}`. {hint}", file=sys.stderr)
        sys.exit(2)
    entry = COMMANDS[name]
    command: type[Command] | type[FolderCommand] = getattr(import_module(entry.module), entry.name)
    return command
