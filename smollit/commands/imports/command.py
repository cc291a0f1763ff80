"""The command `import`: its arguments."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import yaml
from rich.console import Console

from smollit.commands.command import FolderCommand
from smollit.commands.imports.convert import Imported, imported, read_config
from smollit.commands.imports.mapping import Line
from smollit.commands.imports.trl import TRL

if TYPE_CHECKING:
    from smollit.commands.imports.check import Checked


@dataclass(kw_only=True)
class ImportCommand(FolderCommand):
    """Write the config of TRL, axolotl or LLaMA-Factory, or a TrainingArguments JSON, as a config of smollit.

    Prints what each setting became, which ones have no counterpart and why, and which defaults of theirs are written
    out because smollit's are others.

    Args:
        output: File to write; null takes the name of the given one, with `.smollit.yaml`.
        json: Print one JSON object instead of lines.
        check: Score this many rows of the training split by TRL and by smollit, before any step, and print both; 0 does
            not. Needs a config of TRL, and TRL.
    """

    operands: ClassVar[tuple[str, str, str]] = ("+", "FILE", "A YAML or JSON file of the other tool.")

    output: str | None = None
    json: bool = False
    check: int = 0

    def run(self) -> None:
        """Convert the file, and print what became of each setting."""
        if len(self.folders) != 1:
            raise ValueError(f"`import` takes one file, got {len(self.folders)}")
        source = Path(self.folders[0]).expanduser()
        given = read_config(source)
        found = imported(given, source.parent)
        output = Path(self.output).expanduser() if self.output else source.with_suffix(".smollit.yaml")
        template = output.with_suffix(".jinja")
        for file in (output, *([template] if found.template else [])):
            if file.exists():
                raise ValueError(f"{file} exists, and is not overwritten: give another `output`")
        text = f"# Written by `smollit import` from {source.name}, a config of {found.tool}.\n"
        output.parent.mkdir(parents=True, exist_ok=True)
        if found.template:
            template.write_text(found.template, encoding="utf-8")
            found.config["data"]["init_args"]["chat_template"] = str(template)
            found.lines.append(Line("mapped", "chat_template: its text", f"data.chat_template: {template}"))
        output.write_text(text + yaml.safe_dump(found.config, sort_keys=False), encoding="utf-8")
        if not self.json:
            show(found, output)
        checked = self.checked(given, found) if self.check else []
        if self.json:
            lines = [each._asdict() for each in found.lines]
            scores = [each._asdict() | {"agrees": each.agrees} for each in checked]
            print(json.dumps({"output": str(output), "tool": found.tool, "lines": lines, "check": scores}))
        for each in () if self.json else checked:
            said = "the same" if each.agrees else "differs"
            print(f"  {each.name:<20} TRL {each.trl:<12.7g} smollit {each.smollit:<12.7g} {said}")

    def checked(self, given: Mapping[str, Any], found: Imported) -> "list[Checked]":
        """The rows, scored by both.

        Raises:
            ValueError: If the config is of another tool than TRL, or one of both can't score them.
        """
        from smollit.commands.imports.check import check  # imports modules and the trainer

        if found.tool != TRL.name:
            raise ValueError(f"`check` compares with TRL, and this is a config of {found.tool}; the config is written")
        return check(given, found.config, self.check)


def show(found: Imported, output: Path) -> None:
    """Each setting, by what became of it."""
    console = Console()
    for kind in ("mapped", "default of theirs", "no counterpart", "not in the file"):
        some = [line for line in found.lines if line.kind == kind]
        if some:
            console.print(kind, style="bold")
        for line in some:
            console.print(f"  {line.name}  ->  {line.result}", markup=False, highlight=False, soft_wrap=True)
    console.print(
        f"written: {output}. Next: python -m smollit inspect --config {output}", markup=False, highlight=False
    )
