"""load_from_checkpoint from any folder, also of a run of version 0.1; losses from Python that can't be made."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from smollit.losses import DPO
from smollit.modules import DPOModule, SFTModule
from smollit.modules.loading import saved_settings

V0_1 = Path(__file__).parents[1] / "fixtures" / "v0_1"


# case: D10
def test_a_checkpoint_is_loaded_from_another_folder(
    make_run: Callable[..., Any], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained with the folder `m` of work/: found from elsewhere; given where it has moved; named if missing."""
    work, other = tmp_path / "work", tmp_path / "other"
    other.mkdir()
    shutil.copytree(tiny_model, work / "m")
    monkeypatch.chdir(work)
    names = {"model_name": "m", "reference_name": "m"}
    run = make_run(kind="dpo", model=names, folder="work/run", max_steps=1).fit()
    trained = run.module.policy.state_dict()
    monkeypatch.chdir(other)
    path = run.folder / "checkpoints" / "last.ckpt"
    for settings in ({}, {"model_name": str(tiny_model)}):
        loaded = DPOModule.load_from_checkpoint(path, **settings)
        assert all(torch.equal(trained[name], weight) for name, weight in loaded.policy.state_dict().items())
        assert loaded.learning_rate == 1e-2
        (work / "m").rename(work / "gone") if not settings else None
    with pytest.raises(ValueError, match="could not load `m`: not a local folder"):
        DPOModule.load_from_checkpoint(path)


# case: D10
@pytest.mark.parametrize(("kind", "module"), [("dpo", DPOModule), ("sft", SFTModule)])
def test_a_checkpoint_of_version_0_1_is_loaded(
    kind: str, module: type[DPOModule] | type[SFTModule], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its settings are today's: beta is the loss's, a removed argument is left out; its model is a folder above it."""
    monkeypatch.chdir(tmp_path)
    path = V0_1 / "runs" / kind / "checkpoints" / "step-0000004.ckpt"
    _, settings = saved_settings(path, {})
    assert Path(settings["model_name"]).is_dir() and not {"beta", "weights"} & set(settings)
    given = {"model_name": settings["model_name"], "reference_name": None} if kind == "dpo" else {}
    assert module.load_from_checkpoint(path, **given).learning_rate == 3e-3


# case: D10
@pytest.mark.parametrize(
    "loss",
    [
        {"beta": 1},
        {"class_path": "DPO", "init_args": {"bta": 1}},
        {"class_path": "DPO", "init_args": {"beta": "x"}},
        {"class_path": "DPO", "init_args": [1]},
        {"class_path": "DPOO"},
        {"class_path": 3},
        3,
    ],
)
def test_a_loss_that_can_not_be_made_is_named(loss: Any) -> None:
    with pytest.raises(ValueError, match=r"^`model\.loss`"):
        DPOModule("x", loss=loss)
    assert DPOModule("x", loss={"class_path": "dpo", "init_args": {"beta": 0.2}}).loss == DPO(beta=0.2)
