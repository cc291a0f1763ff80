"""`verify`: what an export must have, and each fault by the name of its check."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from smollit.commands.certificate import FILE, sha256
from smollit.commands.export.export import export
from smollit.data.template.template import load_template
from smollit.main import main
from smollit.models import CausalLM


@pytest.fixture(scope="module")
def exported(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verify") / "export"
    template = load_template(AutoTokenizer.from_pretrained(tiny_model), "auto")
    export(CausalLM(str(tiny_model)), str(tiny_model), template=template, output=folder)
    return folder


def change_weight(folder: Path, value: float) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def change(name: str, old: str, new: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))

    return apply


def certify(folder: Path) -> None:
    """New hashes: the fault was there when the folder was written."""
    certificate = json.loads((folder / FILE).read_text())
    certificate["files"] = {name: sha256(folder / name) for name in certificate["files"]}
    (folder / FILE).write_text(json.dumps(certificate))


# promise: verify
@pytest.mark.parametrize(
    ("fault", "hashes", "failed"),
    [
        (lambda folder: None, False, []),
        (lambda folder: (folder / "notes.txt").write_text("mine"), False, []),
        (lambda folder: (folder / FILE).unlink(), False, ["certificate"]),
        (lambda folder: (folder / "README.md").unlink(), False, ["files"]),
        (lambda folder: change_weight(folder, 2.0), False, ["files", "logits"]),
        (lambda folder: change_weight(folder, float("nan")), True, ["weights", "logits"]),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"12345"), True, ["loads"]),
        (lambda folder: (folder / "chat_template.jinja").unlink(), False, ["files"]),  # it is in tokenizer_config.json
        (change("chat_template.jinja", "<|im_start|>", "<|user|>"), True, ["template"]),
        (change("generation_config.json", "2,\n    0", "0"), True, ["stops"]),
    ],
    ids=["sound", "other file", "certificate", "missing", "weight", "nan", "truncated", "none", "template", "stops"],
)
def test_each_fault_is_named_and_the_exit_code_is_1(
    exported: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    fault: Callable[[Path], None],
    hashes: bool,
    failed: list[str],
) -> None:
    """A sound export passes, also with a file beside it; each damaged copy fails in just these checks."""
    folder = Path(shutil.copytree(exported, tmp_path / "copy"))
    fault(folder)
    if hashes:
        certify(folder)
    try:
        main(["verify", str(folder), "--json"])
        code = 0
    except SystemExit as stop:
        code = stop.code
    result = json.loads(capsys.readouterr().out)
    assert [check["name"] for check in result["checks"] if not check["ok"]] == failed
    assert (code, result["ok"]) == ((1, False) if failed else (0, True))


def test_lines_for_people_and_a_sentence_for_what_is_no_folder(
    exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line per check."""
    main(["verify", str(exported)])
    said = capsys.readouterr().out
    assert "ok    files" in said and "7 files have the hashes of the export" in said and "FAIL" not in said
    parameters = sum(weight.numel() for weight in load_file(exported / "model.safetensors").values())
    assert f"{parameters:,}, all finite" in said
    with pytest.raises(SystemExit, match="no/such is not a folder"):
        main(["verify", "no/such"])
    wrong = {"": "FOLDER [FOLDER ...]", "x --jsno 1": "`jsno`: there is no such setting"}
    for words, sentence in wrong.items():
        with pytest.raises(SystemExit, match="2"):
            main(["verify", *words.split()])
        assert sentence in capsys.readouterr().err
