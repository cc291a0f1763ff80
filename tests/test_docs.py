"""The docs are true: their commands exist, and each test that docs/cases.md names holds its case."""

import importlib.util
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from smollit.cli.cli import SmollitCLI
from smollit.cli.folders import folder_command
from smollit.commands import find
from smollit.commands.command import FolderCommand
from smollit.main import main

ROOT = Path(__file__).parent.parent
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "Makefile",
    *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))),
]
PAGES += [str(path.relative_to(ROOT)) for path in sorted((ROOT / "configs").rglob("*.yaml"))]
COMMAND = re.compile(r"python -m (smollit(?:\.[\w.]+)?) ((?:[^\n`\\]|\\\n)*)")
# `python -m smollit inspect --config ...` in a sentence; those of docs/extend.md run in a separate test.
PLACEHOLDERS = ("...", "<", "--help", ".help", "my_parts")


def commands() -> Iterator[tuple[str, str, str]]:
    """(page, module, arguments) of every command in the docs, the configs and the Makefile, on one line."""
    for page in PAGES:
        text = re.sub(r"\\\n#?\s*", "", (ROOT / page).read_text(encoding="utf-8"))
        for module, words in COMMAND.findall(text):
            if not any(placeholder in words for placeholder in PLACEHOLDERS):
                # A remark may follow, or the quote of an echo.
                yield page, module, re.split(r"\s{3,}(?=[a-z])", words)[0].strip(' "')


def load_maker(name: str) -> ModuleType:
    """One of the scripts in docs/."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_pages_that_scripts_write_are_up_to_date() -> None:
    """Writing the pages, and what editors and shells read, anew gives the files that are there."""
    pages = load_maker("make_cases").pages(ROOT) | {"rooms.md": load_maker("make_rooms").page(ROOT)}
    found = {f"docs/{page}": text for page, text in pages.items()}
    found |= {f"configs/{page}": text for page, text in load_maker("make_schema").pages().items()}
    for page, text in found.items():
        assert (ROOT / page).read_text(encoding="utf-8") == text, f"{page}: run docs/make_*.py"


def test_the_tests_that_the_table_of_trl_names_are_there() -> None:
    """Each row of docs/from_trl.md names a test of its file."""
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs" / "from_trl.md").read_text(encoding="utf-8"))
    assert len(named) > 20
    for file, test in named:
        assert f"def {test}(" in (ROOT / file).read_text(encoding="utf-8"), test


# promise: every-command
@pytest.mark.slow
@pytest.mark.parametrize(("page", "module", "words"), commands())
def test_a_command_in_the_docs_is_one(
    page: str, module: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real parser takes it, and all that its config names can be built; its rows and models are not loaded."""
    if module != "smollit":
        assert importlib.util.find_spec(module) is not None
        return
    monkeypatch.chdir(ROOT)
    shipped = words.replace("--config sft.yaml", "--config configs/sft.yaml").replace(" --config mine.yaml", "")
    name, *args = shlex.split(shipped, comments=True)
    command = find([name])
    if issubclass(command, FolderCommand):
        assert folder_command(name, command, args).folders or command.operands[0] == "*"
        return
    cli = SmollitCLI(name, command, command.words(args))
    assert cli.model.model_name == cli.config.model.init_args.model_name


# promise: own-data
def test_the_five_lines_of_the_readme_train(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With its settings in the config that `init` writes, 80 % of 5 rows train for a step, 20 % are validated on."""
    monkeypatch.chdir(tmp_path)
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Your own data")[2].partition("\n## ")[0]
    (rows,), (settings,) = (re.findall(rf"```{language}\n(.*?)```", section, re.S) for language in ("json", "yaml"))
    commands = [shlex.split(words) for words in re.findall(r"python -m smollit ([^#\n]*)", section)]
    assert [words[0] for words in commands] == ["init", "inspect", "fit", "chat"]
    Path("my_chats.jsonl").write_text(rows, encoding="utf-8")
    main(commands[0])
    config = Path("sft.yaml").read_text(encoding="utf-8")
    for line in settings.splitlines():
        config = re.sub(rf"(?m)^( +){line.partition(':')[0]}: .*$", rf"\1{line}", config)
    Path("sft.yaml").write_text(config, encoding="utf-8")
    small = [
        f"--model.model_name={tiny_model}",
        "--model.num_warmup_steps=0",
        "--data.max_length=64",
        "--data.num_workers=0",
    ]
    small += [
        "--data.num_proc=1",
        f"--data.cache_dir={tmp_path}",
        "--trainer.accelerator=cpu",
        "--trainer.precision=32-true",
    ]
    main([*commands[1], *small])
    assert "What is a baby hen called?" in capsys.readouterr().out
    cli = main([*commands[2], *small, "--trainer.max_epochs=1"])
    assert isinstance(cli, SmollitCLI)
    assert cli.trainer.global_step == 1
    run = Path(commands[3][1])
    report = json.loads((run / "data_report.json").read_text(encoding="utf-8"))
    assert {split: part["kept"] for split, part in report.items()} == {"train": 4, "val": 1}
    assert (run / "export" / "model.safetensors").exists()
