"""The command `init`: a commented config in the current folder, and the command that uses it."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import smollit
from smollit.commands.command import FolderCommand

PACKAGE = Path(smollit.__file__).parent
SCHEMA = "# yaml-language-server: $schema="  # editors check settings and show their help by it
# By the word that is given: the shipped configs, and the names that their copies get.
KINDS = {
    "sft": {"sft.yaml": "sft.yaml"},
    "dpo": {"dpo.yaml": "dpo.yaml"},
    "demo": {"demo/sft.yaml": "demo-sft.yaml", "demo/dpo.yaml": "demo-dpo.yaml"},
}


@dataclass(kw_only=True)
class InitCommand(FolderCommand):
    """Write a commented config into the current folder: sft, dpo, or demo.

    Args:
        folders: What to write: `sft`, `dpo` or `demo`.
    """

    operands: ClassVar[tuple[str, str, str]] = ("+", "KIND", "sft, dpo, or demo (both stages, on rows that ship).")

    def run(self) -> None:
        """Write the configs, and print the next command.

        Raises:
            ValueError: If there is no such kind, or a file of that name exists.
        """
        unknown = [kind for kind in self.folders if kind not in KINDS]
        if unknown:
            raise ValueError(f"`init` writes {', '.join(KINDS)}, and there is no {unknown[0]!r}")
        names = {source: name for kind in self.folders for source, name in KINDS[kind].items()}
        for name in names.values():
            if Path(name).exists():
                raise ValueError(f"{name} exists already: move it, or run `init` in another folder")
        for source, name in names.items():
            Path(name).write_text(own_config(source, name), encoding="utf-8")
            print(f"wrote {name}")
        first = next(iter(names.values()))
        print(f"Next: set what you need in {first}, then look at the rows, and train:")
        print(f"  python -m smollit inspect --config {first}")
        print(f"  python -m smollit fit --config {first}")


def own_config(source: str, name: str) -> str:
    """A shipped config whose comments name the copy, and whose schema and files are found from any folder."""
    folder = PACKAGE / "configs" if (PACKAGE / "configs").is_dir() else PACKAGE.parent / "configs"
    text = (folder / source).read_text(encoding="utf-8").replace(f"configs/{source}", name)
    text = text.replace(f"{SCHEMA}{'../' * source.count('/')}", f"{SCHEMA}{folder}/")
    for path in ("models/tiny", "data/samples"):
        text = text.replace(f"smollit/{path}", str(PACKAGE / path))
    return text
