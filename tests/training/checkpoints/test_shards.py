"""Folders of shards: as safe as files, and no code runs from them. FSDP2 with one process on the CPU writes them."""

import io
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from smollit.models.checkpoint import policy_weights
from smollit.training.options import Sharded2Strategy
from tests.training.conftest import assert_same_weights


@pytest.fixture
def fit_shards(fit: Any) -> Any:
    def run(folder: Path, **options: Any) -> Any:
        return fit(folder, strategy=Sharded2Strategy(save_distributed_checkpoint=True), **options)

    return run


class Malicious:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


# promise: shards
@pytest.mark.slow
def test_folders_are_replaced_kept_resumed_and_verified(fit_shards: Any, tmp_path: Path) -> None:
    """2 of 5 periodic folders and `last` are kept, and nothing unfinished; the resumed run has the weights of the whole
    one, to the bit. A flipped byte in a shard or in the index is named, with the folder before."""
    folder = tmp_path / "run" / "checkpoints"
    constant = {"checkpoint_every_n_steps": 1, "model": {"schedule": "constant"}}
    fit_shards(tmp_path / "whole", max_steps=5, **constant)
    fit_shards(tmp_path / "run", max_steps=3, **constant)
    (folder / ".step-0000001.ckpt.tmp").mkdir()
    resumed = fit_shards(tmp_path / "run", max_steps=5, **constant)
    assert resumed.error is None and [number for number, _, _ in resumed.steps] == [4, 5]
    assert sorted(os.listdir(folder)) == ["last.ckpt", "step-0000004.ckpt", "step-0000005.ckpt"]
    assert_same_weights(policy_weights(folder / "last.ckpt"), policy_weights(tmp_path / "whole/checkpoints/last.ckpt"))
    for name in ("__0_0.distcp", ".metadata"):
        broken = shutil.copytree(folder, tmp_path / name / "checkpoints") / "last.ckpt"
        content = bytearray((broken / name).read_bytes())
        content[len(content) // 2] ^= 1
        (broken / name).write_bytes(content)
        error = fit_shards(tmp_path / name, max_steps=6).error
        assert isinstance(error, ValueError) and str(broken) in str(error) and "step-0000005.ckpt" in str(error)


# promise: no-code
# case: B9
def test_no_code_runs_from_a_folder(fit_shards: Any, fit: Any, tmp_path: Path) -> None:
    """A pickle that calls a function, as the index, and as a value inside a shard: resume, `init_from` and validate
    refuse the folder and don't call it."""
    first = fit_shards(tmp_path / "run", max_steps=1)
    good, proof = tmp_path / "run" / "checkpoints" / "last.ckpt", tmp_path / "executed"
    index = shutil.copytree(good, tmp_path / "index.ckpt")
    (index / ".metadata").write_bytes(pickle.dumps(Malicious(proof)))
    value = shutil.copytree(good, tmp_path / "value.ckpt")
    with (value / ".metadata").open("rb") as file:
        metadata = pickle.load(file)
    bytes_entry = next(
        name
        for name in metadata.storage_data
        if type(metadata.state_dict_metadata[name.fqn]).__name__ == "BytesStorageMetadata"
    )
    place, content = metadata.storage_data[bytes_entry], io.BytesIO()
    torch.save(Malicious(proof), content)
    with (value / place.relative_path).open("ab") as shard:
        place.offset, place.length = shard.tell(), len(content.getvalue())
        shard.write(content.getvalue())
    (value / ".metadata").write_bytes(pickle.dumps(metadata))
    for path in (index, value):
        (path / "metadata.sha256").unlink()
        errors = [
            fit_shards(tmp_path / "resumed", ckpt_path=str(path)).error,
            fit(tmp_path / "new", model={"init_from": str(path)}, max_steps=1).error,
        ]
        assert all(isinstance(error, ValueError) and str(path) in str(error) for error in errors)
        with pytest.raises(ValueError, match=path.name):
            first.trainer.validate(first.module, ckpt_path=path)
    assert not proof.exists()
