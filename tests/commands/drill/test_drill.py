"""`drill`: a short form on the demo, and comparisons that find what they should."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from smollit.commands.drill.compare import (
    content,
    damaged_checkpoints,
    different_weights,
    first_different_step,
    left_behind,
)
from smollit.commands.drill.config import MARKER, empty_folder
from smollit.main import main


# promise: resume
@pytest.mark.slow
def test_the_short_form_on_the_demo(tmp_path: Path) -> None:
    """3 kills at random moments, then three faults of the file system and two lost ranks: every promise that was tried
    is kept."""
    words = ["drill", "--config", "configs/demo/sft.yaml", "--trainer.default_root_dir", str(tmp_path)]
    main([*words, "--kills", "3", "--steps", "6", "--faults", "true", "--json", str(tmp_path / "drill.json")])
    found = json.loads((tmp_path / "drill.json").read_text())
    assert all(promise["kept"] == promise["tried"] for promise in found)
    assert found[0]["tried"] >= 1 and found[4]["tried"] == 3
    assert [promise["tried"] for promise in found[-4:]] == [1, 1, 1, 1 + 1]


def test_only_the_folder_of_an_earlier_drill_is_emptied(tmp_path: Path) -> None:
    """A run that is called `drill` stays as it is."""
    first = empty_folder(tmp_path / "drill")
    (first / "unbroken.log").write_text("1")
    assert [path.name for path in empty_folder(first).iterdir()] == [MARKER]
    (tmp_path / "runs/drill").mkdir(parents=True)
    (tmp_path / "runs/drill/config.yaml").write_text("seed_everything: 1")
    with pytest.raises(ValueError, match="holds files that no drill wrote"):
        empty_folder(tmp_path / "runs/drill")
    assert (tmp_path / "runs/drill/config.yaml").is_file()


def write_run(folder: Path, rows: list[str], weight: float) -> Path:
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "metrics.csv").write_text("\n".join(["step,train/loss,throughput/tokens_per_second", *rows]) + "\n")
    state = {"policy.weight": torch.tensor([1.0, weight]), "policy.bias": torch.zeros(2)}
    torch.save({"global_step": 2, "state_dict": state}, folder / "checkpoints" / "last.ckpt")
    return folder


def test_a_difference_is_found_wherever_it_is(tmp_path: Path) -> None:
    """One weight of two tensors off by 0.25; a loss of step 2; a step that stands twice; a broken file."""
    whole = write_run(tmp_path / "whole", ["1,0.5,100", "2,0.4,100"], 2.0)
    other = write_run(tmp_path / "other", ["1,0.5,90", "2,0.41,90"], 2.25)
    assert different_weights(whole, whole) == (0, 0.0)
    assert different_weights(other, whole) == (1, 0.25)
    assert first_different_step(whole, whole) is None
    assert first_different_step(other, whole) == (2, "train/loss")
    twice = write_run(tmp_path / "twice", ["1,0.5,100", "1,0.5,100", "2,0.4,100"], 2.0)
    assert first_different_step(twice, whole) == (2, "step")
    assert damaged_checkpoints(other) == [] == left_behind(other)
    file = other / "checkpoints" / "last.ckpt"
    file.write_bytes(file.read_bytes()[:-100])
    (other / ".export-abcd1234").mkdir()
    assert damaged_checkpoints(other) == ["last.ckpt"] and left_behind(other) == [".export-abcd1234"]
    before = content(whole)
    shutil.copy(file, whole / "checkpoints")
    assert {name for name, _ in before.items() ^ content(whole).items()} == {"checkpoints/last.ckpt"}
