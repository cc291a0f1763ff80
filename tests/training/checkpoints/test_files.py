"""Checkpoint files: whole or not at all, small, safe to read, pruned; a damaged one is named in the error."""

import errno
import json
import math
import os
import resource
import shutil
import signal
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import AsyncCheckpointIO

from smollit.modules import SFTModule
from smollit.modules.lost_steps import NonFiniteError
from smollit.training.checkpoints.files import find_checkpoint
from tests.training.conftest import Act


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def last(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


# case: checkpoint-01 checkpoint-08
@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_checkpoints_are_plain_and_hyperparameters_small(fit: Any, tmp_path: Path, kind: str) -> None:
    """weights_only reads it; hyper-parameters are JSON of under 100 kB."""
    assert fit(tmp_path, kind=kind, max_steps=1).error is None
    checkpoint = last(tmp_path)
    assert len(json.dumps(checkpoint["hyper_parameters"])) < 100_000
    assert len(json.dumps(checkpoint["run_state"]["config"])) < 100_000
    assert checkpoint["hyper_parameters"]["learning_rate"] == 1e-3


class Notes(Callback):
    """Its state is what it is given."""

    def __init__(self, **notes: Any) -> None:
        self.notes = notes

    @property
    def state_key(self) -> str:
        return next(iter(self.notes))

    def state_dict(self) -> dict[str, Any]:
        return self.notes

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.loaded = state_dict


@pytest.mark.slow
def test_an_object_in_a_state_is_left_out_and_the_run_resumes(fit: Any, tmp_path: Path, caplog: Any) -> None:
    """One callback keeps values, another a date, which is named once; of a module's arguments, a Path."""

    class Placed(SFTModule):
        def __init__(self, model_name: str, *, place: Path = tmp_path, **options: Any) -> None:
            super().__init__(model_name, **options)

    for steps in (2, 3):
        kept, lost = Notes(numbers=[1, (2.5, torch.ones(1))], count=Counter("ab")), Notes(day=date(2026, 1, 2))
        options = {"module_class": Placed, "checkpoint_every_n_steps": 1, "max_steps": steps}
        assert fit(tmp_path, kept, lost, **options).error is None
    assert kept.loaded == kept.notes and not vars(lost).get("loaded")
    assert {"learning_rate", "place"} & set(last(tmp_path)["hyper_parameters"]) == {"learning_rate"}
    assert caplog.text.count("callbacks['day'] is left out of checkpoints") == 2  # starts
    assert "hyper_parameters['place'] is left out" in caplog.text


# case: checkpoint-02
def test_reference_is_not_in_the_checkpoint(fit: Any, tmp_path: Path) -> None:
    """As many keys as the policy has, all of it; what identifies the reference is kept."""
    run = fit(tmp_path, kind="dpo", max_steps=1)
    checkpoint = last(tmp_path)
    assert set(checkpoint["state_dict"]) == {f"policy.{name}" for name in run.weights}
    assert set(checkpoint["reference"]) == {"source", "fingerprint"}


# case: checkpoint-02
def test_missing_policy_weight_is_an_error(fit: Any, tmp_path: Path) -> None:
    """One key gone: its name is in the message, and no step is made."""
    fit(tmp_path, max_steps=1)
    checkpoint = last(tmp_path)
    gone = sorted(checkpoint["state_dict"])[0]
    del checkpoint["state_dict"][gone]
    torch.save(checkpoint, tmp_path / "checkpoints" / "last.ckpt")
    run = fit(tmp_path, max_steps=2)
    assert gone in str(run.error) and run.steps == []


# promise: same-content
# case: checkpoint-02
def test_other_reference_is_refused(fit: Any, tmp_path: Path, tiny_model: Path) -> None:
    """The reference's folder now holds other weights: rewards would not be comparable."""
    from transformers import AutoModelForCausalLM

    fit(tmp_path, kind="dpo", max_steps=1)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.get_input_embeddings().weight.data += 1
    model.save_pretrained(tmp_path / "other")
    run = fit(tmp_path, kind="dpo", max_steps=2, model={"reference_name": str(tmp_path / "other")})
    assert isinstance(run.error, ValueError) and str(tiny_model) in str(run.error) and "reference" in str(run.error)


# case: checkpoint-05
@pytest.mark.slow
def test_full_disk_in_a_run_keeps_the_step_before(fit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full at step 3: the run fails and leaves no half file; it resumes from step 2's, which is whole."""
    save, calls = torch.save, []

    def fail_at_third(value: Any, file: Any, **options: Any) -> None:
        if not isinstance(value, dict):  # a process group of an earlier test pickles tensors
            return save(value, file, **options)
        calls.append(value["global_step"])
        if len(calls) >= 3:
            file.write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(value, file)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", fail_at_third)
        error = fit(tmp_path, checkpoint_every_n_steps=1).error
    assert (
        isinstance(error, ValueError) and "No space left" in str(error) and "`trainer.default_root_dir`" in str(error)
    )
    assert "step-0000002.ckpt of step 2 is whole" in str(error)
    assert names(tmp_path) == ["step-0000001.ckpt", "step-0000002.ckpt"]
    assert fit(tmp_path, max_steps=4).steps[0][0] == 3


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["cut", "garbage", "empty"])
def test_damaged_newest_names_the_good_one(fit: Any, tmp_path: Path, damage: str) -> None:
    """last.ckpt is truncated, overwritten or empty: the error names it, and step 1's file to use instead."""
    fit(tmp_path, max_steps=1, checkpoint_every_n_steps=1)
    path = tmp_path / "checkpoints" / "last.ckpt"
    content = path.read_bytes()
    path.write_bytes({"cut": content[: len(content) // 2], "garbage": b"garbage" * 99, "empty": b""}[damage])
    run = fit(tmp_path, max_steps=2)
    assert isinstance(run.error, ValueError)
    assert str(path) in str(run.error) and str(path.with_name("step-0000001.ckpt")) in str(run.error)
    assert "(it is truncated, or of another kind)" in str(run.error)
    assert fit(tmp_path, ckpt_path=str(path.with_name("step-0000001.ckpt")), max_steps=2).steps[0][0] == 2


# case: checkpoint-07
@pytest.mark.slow
def test_keep_checkpoints_holds_across_resumes(fit: Any, tmp_path: Path) -> None:
    """10 saves, 2 kept, and last: 3 files. A half-written file of a crash is newer than `last`, and does not count;
    2 more saves after a resume, and 2 after one from an older file: still 3, the newest ones."""
    fit(tmp_path, max_steps=10, checkpoint_every_n_steps=1)
    assert names(tmp_path) == ["last.ckpt", "step-0000009.ckpt", "step-0000010.ckpt"]
    leftover = tmp_path / "checkpoints" / ".last.ckpt.tmp"
    leftover.write_bytes(b"half")
    os.utime(leftover, (2e9, 2e9))
    resumed = fit(tmp_path, max_steps=12, checkpoint_every_n_steps=1)
    assert [number for number, _, _ in resumed.steps] == [11, 12]
    assert names(tmp_path) == ["last.ckpt", "step-0000011.ckpt", "step-0000012.ckpt"]
    older = str(tmp_path / "checkpoints" / "step-0000011.ckpt")
    fit(tmp_path, max_steps=13, max_epochs=4, checkpoint_every_n_steps=1, ckpt_path=older)
    assert names(tmp_path) == ["last.ckpt", "step-0000012.ckpt", "step-0000013.ckpt"]


# case: checkpoint-09
@pytest.mark.slow
def test_weights_only_file_starts_a_new_run_and_resumes_none(fit: Any, tmp_path: Path) -> None:
    """At step 3 only weights are saved: resume names `init_from`; init_from starts at step 1 with these weights. A run
    that resumes does without the file."""
    run = fit(tmp_path / "first", max_steps=3)
    path = tmp_path / "weights.ckpt"
    run.trainer.save_checkpoint(path, weights_only=True)
    refused = fit(tmp_path / "second", ckpt_path=str(path))
    assert isinstance(refused.error, ValueError) and "init_from" in str(refused.error)
    started = fit(tmp_path / "third", ckpt_path=None, model={"init_from": str(path)}, max_steps=1)
    assert started.steps[0][0] == 1
    assert all(state["step"] == 1 for state in started.trainer.optimizers[0].state_dict()["state"].values())
    stopped = fit(tmp_path / "fourth", ckpt_path=None, model={"init_from": str(path)}, max_steps=0)
    assert all(torch.equal(stopped.weights[name], value) for name, value in run.weights.items())
    path.unlink()
    assert fit(tmp_path / "third", model={"init_from": str(path)}, max_steps=2).steps[0][0] == 2
    loaded = SFTModule.load_from_checkpoint(tmp_path / "third/checkpoints/last.ckpt")
    assert loaded.init_from == str(path)


# case: checkpoint-10
def test_checkpoints_lie_in_one_folder_whatever_is_monitored(fit: Any, tmp_path: Path) -> None:
    """Ours, and a ModelCheckpoint on val/loss without a metric in its file name: no subfolders."""
    best = ModelCheckpoint(monitor="val/loss", filename="best", auto_insert_metric_name=False)
    fit(tmp_path, best, max_steps=2, checkpoint_every_n_steps=1)
    assert names(tmp_path) == ["best.ckpt", "last.ckpt", "step-0000001.ckpt", "step-0000002.ckpt"]


@pytest.mark.parametrize("option", ["val_every_n_steps", "checkpoint_every_n_steps", "keep_checkpoints"])
def test_intervals_below_one_are_refused(fit: Any, tmp_path: Path, option: str) -> None:
    """0 would be no validation, no checkpoint, or none kept."""
    with pytest.raises(ValueError, match=f"trainer.{option}` must be at least 1, got 0"):
        fit(tmp_path, **{"checkpoint_every_n_steps": 1, option: 0})


# case: B1
@pytest.mark.slow
def test_the_newest_is_the_one_of_the_last_step(fit: Any, tmp_path: Path) -> None:
    """Steps 2 and 4, and last of step 4; step 2 is touched, or all are dated a day ahead, as after copies: the run
    resumes at step 5. Then 2 are kept: step 6 stays, step 2 goes. A file that the user renamed is the user's."""
    fit(tmp_path, max_steps=4, checkpoint_every_n_steps=2)
    folder = tmp_path / "checkpoints"
    os.utime(folder / "step-0000002.ckpt", (4e9, 4e9))
    assert fit(tmp_path / "other", ckpt_path=str(find_checkpoint("last", folder)), max_steps=5).steps[0][0] == 5
    shutil.copy(folder / "step-0000002.ckpt", folder / "step-2-good.ckpt")
    for path in folder.iterdir():
        os.utime(path, (4e9, 4e9))
    assert [number for number, _, _ in fit(tmp_path, max_steps=6, checkpoint_every_n_steps=2).steps] == [5, 6]
    assert names(tmp_path) == ["last.ckpt", "step-0000004.ckpt", "step-0000006.ckpt", "step-2-good.ckpt"]


# case: B1
@pytest.mark.slow
def test_a_new_run_and_a_branch_come_after_what_they_replace(fit: Any, tmp_path: Path) -> None:
    """8 steps; from step 4 again to 6; then a new run of 2: `last` is the newest of these, whatever steps are there."""
    fit(tmp_path, max_steps=8, checkpoint_every_n_steps=4)
    fit(tmp_path, max_steps=6, ckpt_path=str(tmp_path / "checkpoints/step-0000004.ckpt"), checkpoint_every_n_steps=2)
    (tmp_path / "checkpoints/last.ckpt").unlink()
    assert names(tmp_path) == ["step-0000006.ckpt", "step-0000008.ckpt"]
    assert fit(tmp_path, max_steps=7).steps[0][0] == 7
    fit(tmp_path, max_steps=2, ckpt_path=None, checkpoint_every_n_steps=2)
    assert fit(tmp_path, max_steps=3).steps[0][0] == 3


# promise: checksums
# case: checkpoint-05
@pytest.mark.parametrize("part", ["weights", "pickle", "directory"])
@pytest.mark.slow
def test_a_flipped_byte_is_named(part: str, fit: Any, tmp_path: Path) -> None:
    """One byte of a tensor, of the pickle, or of the archive's directory: torch.load reads the first without a word.
    Fit, validate and `init_from` name the file, and the first two name the one before."""
    run = fit(tmp_path, max_steps=1, checkpoint_every_n_steps=1)
    path = tmp_path / "checkpoints" / "last.ckpt"
    content = bytearray(path.read_bytes())
    weight = run.weights["model.model.embed_tokens.weight"].numpy().tobytes()
    content[{"weights": content.index(weight) + 9, "pickle": content.index(b"run_state"), "directory": -60}[part]] ^= 1
    path.write_bytes(content)
    advice = rf"{path}.*step-0000001\.ckpt"
    with pytest.raises(ValueError, match=advice):
        raise fit(tmp_path, max_steps=2).error
    with pytest.raises(ValueError, match=advice):
        run.trainer.validate(run.module, datamodule=run.trainer.datamodule, ckpt_path=path)
    started = fit(tmp_path / "new", model={"init_from": str(path)}, max_steps=1).error
    assert isinstance(started, ValueError) and str(path) in str(started)


# promise: finite
# case: B5
def test_weights_that_are_not_finite_are_never_saved(fit: Any, tmp_path: Path) -> None:
    """A NaN in one weight, also if files are written in a thread, or infinity in the optimizer's state, from step 3 on,
    with a ModelCheckpoint of the user's: the run ends at the next save, and names step 2, the newest finite one; every
    file that is left is finite."""
    for name in ("weight", "state", "async"):

        def poison(trainer: Any, name: str = name) -> bool:
            if trainer.global_step == 3:
                parameter = next(trainer.lightning_module.parameters())
                state = trainer.optimizers[0].state[parameter]["exp_avg_sq"]
                (state if name == "state" else parameter.data)[0] = math.inf if name == "state" else math.nan
            return False

        folder = tmp_path / name
        own = ModelCheckpoint(folder / "own", "{step}", every_n_train_steps=1, save_top_k=-1)
        options = {"checkpoint_every_n_steps": 2, "plugins": [AsyncCheckpointIO()] if name == "async" else []}
        error = fit(folder, Act("on_train_batch_end", poison), own, **options).error
        assert isinstance(error, NonFiniteError) and "step-0000002.ckpt of step 2" in str(error)
        files = sorted(folder.rglob("*.ckpt"))
        assert [file.name for file in files] == ["step-0000002.ckpt", "step=1.ckpt", "step=2.ckpt"]
        assert fit(folder, max_steps=3).steps[0][0] == 3


# promise: whole-files
# case: B11
@pytest.mark.slow
def test_a_disk_that_fills_up_in_a_save(fit: Any, tmp_path: Path) -> None:
    """No file may be larger than half a checkpoint from step 3 on: the run ends with a sentence, step 2 is whole."""
    fit(tmp_path / "size", max_steps=1)
    size = (tmp_path / "size/checkpoints/last.ckpt").stat().st_size
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limit = Act(
        "on_train_batch_end",
        lambda trainer: trainer.global_step == 3,
        lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, before[1])),
    )
    try:
        error = fit(tmp_path / "run", limit, checkpoint_every_n_steps=1).error
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert (
        isinstance(error, ValueError) and "File too large" in str(error) and "`trainer.default_root_dir`" in str(error)
    )
    assert names(tmp_path / "run") == ["step-0000001.ckpt", "step-0000002.ckpt"]
    assert fit(tmp_path / "run", max_steps=4).steps[0][0] == 3
