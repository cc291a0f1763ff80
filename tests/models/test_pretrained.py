"""Models that can't be loaded, or whose log-probabilities would be wrong, are refused in one sentence."""

import json
import logging
import shutil
from pathlib import Path

import pytest

from smollit.data.template.tokenize import load_tokenizer
from smollit.models import CausalLM
from smollit.models.pretrained import weights_fingerprint
from tests.conftest import edited


def test_a_folder_that_lacks_something_is_named(tmp_path: Path, tiny_model: Path) -> None:
    """An absolute path, a relative one and a run's folder that do not exist, which are no Hub ids; a folder without a
    config; one without weights."""
    for name in (str(tmp_path / "nothing"), "./nothing", "runs/sft/export"):
        with pytest.raises(ValueError, match=r"does not exist.*: check the path") as refused:
            CausalLM(name)
        assert (str(Path.cwd()) in str(refused.value)) == (not Path(name).is_absolute())
    with pytest.raises(ValueError, match=r"holds no config.json"):
        CausalLM(str(tmp_path))
    shutil.copy(tiny_model / "config.json", tmp_path)
    with pytest.raises(ValueError, match=r"no weights.*or set `weights: random`"):
        CausalLM(str(tmp_path))


def test_an_adapter_whose_base_is_missing_is_named(tmp_path: Path, tiny_model: Path) -> None:
    """peft writes null for a model from memory; a folder that has moved; a method of peft that can't be merged."""
    prompts = {"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 2}
    for base, words in (
        (None, "names no base model: set its `base_model_name_or_path`"),
        (str(tmp_path / "gone"), "is an adapter, and its base model can't be loaded: .*does not exist"),
        (str(tiny_model), "does not fit its base model"),
    ):
        (tmp_path / "adapter_config.json").write_text(json.dumps(prompts | {"base_model_name_or_path": base}))
        with pytest.raises(ValueError, match=words):
            CausalLM(str(tmp_path))


# promise: no-code
def test_code_that_a_model_brings_is_refused_without_a_question(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers asks by default, and the answer here would be yes."""
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    names = {
        "config.json": ("AutoConfig", "own.Config"),
        "tokenizer_config.json": ("AutoTokenizer", ["own.Words", None]),
    }
    for file, (auto, name) in names.items():
        changed = json.loads((folder / file).read_text()) | {"auto_map": {auto: name}, "model_type": "own"}
        changed.pop("tokenizer_class", None)
        (folder / file).write_text(json.dumps(changed))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')\nclass Config: ...\nclass Words: ...\n")
    monkeypatch.setattr("builtins.input", lambda prompt: "y")
    with pytest.raises(ValueError, match="brings code of its own, which smollit never runs"):
        CausalLM(str(folder))
    with pytest.raises(ValueError, match="could not load the tokenizer"):
        load_tokenizer(str(folder))
    assert not (tmp_path / "run").exists()


def test_a_hub_that_can_not_be_reached_is_named() -> None:
    """HF_HUB_OFFLINE is set for all tests: one sentence on what to do."""
    with pytest.raises(ValueError, match=r"could not load `nobody/nothing`.*Check the name and the network"):
        CausalLM("nobody/nothing")


def test_broken_or_incomplete_weights_are_named(tmp_path: Path, tiny_model: Path) -> None:
    """A truncated file, weights of another size, and weights without one tensor."""
    broken = shutil.copytree(tiny_model, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes((tiny_model / "model.safetensors").read_bytes()[:1000])
    other = edited(tiny_model, tmp_path / "other", intermediate_size=48)
    more = edited(tiny_model, tmp_path / "more", num_hidden_layers=3, layer_types=None)
    for folder, text in (
        (broken, "could not load the weights"),
        (other, "could not load the weights"),
        (more, "lack 9"),
    ):
        with pytest.raises(ValueError, match=text):
            CausalLM(str(folder))


def test_loading_is_quiet(
    tiny_model: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """No progress bar and no warning for a local folder."""
    with caplog.at_level(logging.WARNING):
        CausalLM(str(tiny_model))
    out, err = capfd.readouterr()
    assert (out, err, caplog.text) == ("", "", "")


def test_weights_are_identified_by_their_files(tiny_model: Path, tmp_path: Path) -> None:
    """A copy elsewhere is the same model, whatever else lies in the folder; another config or one other byte of the
    weights is not."""
    copy = shutil.copytree(tiny_model, tmp_path / "copy")
    (copy / "README.md").write_text("hello")
    expected = weights_fingerprint(str(tiny_model))
    assert weights_fingerprint(str(copy)) == expected
    other = edited(tiny_model, tmp_path / "other", rms_norm_eps=1e-3)
    content = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert len({expected, weights_fingerprint(str(other)), weights_fingerprint(str(copy))}) == 3


def test_a_folder_without_weights_has_no_identity(tmp_path: Path, tiny_model: Path) -> None:
    shutil.copy(tiny_model / "config.json", tmp_path)
    with pytest.raises(ValueError, match=r"no weights"):
        weights_fingerprint(str(tmp_path))
    with pytest.raises(ValueError, match=r"does not exist"):
        weights_fingerprint(str(tmp_path / "nothing"))


def test_weights_of_the_hub_are_identified_by_their_commit(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the Hub's cache holds commit abc of a model, its identity is model@abc."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--somebody--model"
    (repository / "snapshots" / "abc").mkdir(parents=True)
    shutil.copy(tiny_model / "config.json", repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    assert weights_fingerprint("somebody/model") == "somebody/model@abc"
