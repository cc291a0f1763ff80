"""Runs that version 0.1.0 stopped at step 4 of 9 end with the weights that it would have reached itself."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import CAN_FIX_ORDER, FIXED_ORDER, ROOT

FIXTURE = ROOT / "tests" / "fixtures" / "v0_1"
SAME_BITS = CAN_FIX_ORDER and torch.__version__.startswith("2.13.0")  # that the fixture was made with
# The settings of the loss have moved since; the checkpoint holds the old ones.
OLD = "    beta: 0.2\n    loss: sigmoid\n    label_smoothing: 0.1\n"
NEW = "    loss: {class_path: smollit.losses.DPO, init_args: {beta: 0.2, label_smoothing: 0.1}}\n"


# promise: older-runs
# case: resume-01
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_a_run_of_version_0_1_resumes_to_the_bit(kind: str, tmp_path: Path) -> None:
    """Its checkpoint keeps the position under another name; rows, rates, dropout and pending metrics resume. Where the
    order of sums can't be fixed, the sum of squares agrees to 1e-6."""
    folder = tmp_path / "run"
    shutil.copytree(FIXTURE, folder)
    settings = (folder / f"{kind}.yaml").read_text()
    (folder / f"{kind}.yaml").write_text(settings.replace(OLD, NEW))
    environment = os.environ | FIXED_ORDER | {"PYTHONPATH": str(ROOT), "SMOLLIT_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "smollit", "fit", "--config", f"{kind}.yaml"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    expected = json.loads((FIXTURE / "expected.json").read_text())[kind]
    checkpoint = torch.load(folder / "runs" / kind / "checkpoints" / "last.ckpt", weights_only=True)
    weights = {name: value for name, value in checkpoint["state_dict"].items() if name.startswith("policy.")}
    assert checkpoint["global_step"] == expected["step"]
    squares = sum(float((value.double() ** 2).sum()) for value in weights.values())
    assert squares == pytest.approx(expected["sum_of_squares"], rel=1e-6)
    if SAME_BITS:
        content = b"".join(weights[name].contiguous().numpy().tobytes() for name in sorted(weights))
        assert hashlib.sha256(content).hexdigest() == expected["sha256"]
