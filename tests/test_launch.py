"""The launch files: torchrun over two nodes, SLURM, and Ray, against one process."""

import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parent.parent
LAUNCH = ROOT / "configs" / "launch"
SAMPLES = ROOT / "smollit" / "data" / "samples" / "ultrachat"


def words(model: Path, cache: Path, run: Path, steps: int) -> list[str]:
    """Words of `fit`: 8 rows per optimizer step, a micro-batch of 2 rows per device, a checkpoint every 2 steps."""
    settings: dict[str, Any] = {
        "model": "SFTModule",
        "model.model_name": model,
        "model.schedule": "constant",
        "data": "UltraChatDataModule",
        "data.dataset": SAMPLES,
        "data.train_split": "train_sft[:40]",
        "data.val_split": "null",
        "data.max_length": 64,
        "data.max_dropped_share": 1.0,
        "data.train_batch_size": 2,
        "data.global_batch_size": 8,
        "data.cache_dir": cache,
        "trainer.default_root_dir": run,
        "trainer.accelerator": "cpu",
        "trainer.max_steps": steps,
        "trainer.checkpoint_every_n_steps": 2,
        "trainer.logger": "false",
        "ckpt_path": "last",
    }
    return [f"--{name}={value}" for name, value in settings.items()]


def environment(**more: str) -> dict[str, str]:
    """That of a process of one thread which imports this smollit, and no address of a process group of other tests."""
    theirs = {"MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK", "LOCAL_RANK", "NODE_RANK"}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    kept = {name: value for name, value in os.environ.items() if name not in theirs}
    return kept | {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | more


def alone(*given: str) -> None:
    """One process, as `python -m smollit fit` starts it."""
    subprocess.run(
        [sys.executable, "-m", "smollit", "fit", *given, "--trainer.devices=1"], env=environment(), check=True
    )


def weights(run: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return state


def assert_same(run: Path, other: Path) -> None:
    """To 1e-6."""
    torch.testing.assert_close(weights(run), weights(other), rtol=1e-6, atol=1e-6)


# promise: step-rows, many-machines
@pytest.mark.slow
def test_two_nodes_resume_the_run_of_one_process(tiny_model: Path, cache_dir: Path, tmp_path: Path) -> None:
    """3 steps in one process, then 3 more on two nodes of one process each, which torchrun joins: the weights of 6
    steps in one process. 4 micro-batches of 2 rows are accumulated first, then 2 on each node."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    alone(*words(tiny_model, cache_dir, whole, steps=6))
    alone(*words(tiny_model, cache_dir, run, steps=3))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    own = environment(PORT=port, DEVICES="1", TORCHRUN_OPTIONS="--local-addr 127.0.0.1")
    command = ["bash", str(LAUNCH / "torchrun.sh"), "127.0.0.1", "2", *words(tiny_model, cache_dir, run, steps=6)]
    nodes = [subprocess.Popen(command, env=own) for _ in range(2)]
    try:
        assert [node.wait(timeout=900) for node in nodes] == [0, 0]
    finally:
        for node in nodes:
            node.kill()
    assert_same(run, whole)


# promise: ray
@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install 'smollit[ray]'")
def test_two_workers_of_ray_make_the_steps_of_one_process(tiny_model: Path, cache_dir: Path, tmp_path: Path) -> None:
    """3 steps in one process, 3 more on two workers: the weights of 6 steps in one process."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    alone(*words(tiny_model, cache_dir, whole, steps=6))
    alone(*words(tiny_model, cache_dir, run, steps=3))
    by_ray(tmp_path, *words(tiny_model, cache_dir, run, steps=6))
    assert_same(run, whole)


def by_ray(folder: Path, *given: str) -> None:
    """Two workers of Ray, which find modules in `folder`."""
    launcher = [sys.executable, str(LAUNCH / "ray_train.py"), "--workers=2", f"--storage={folder / 'ray'}"]
    own = environment(PYTHONPATH=os.pathsep.join([str(ROOT), str(folder)]))
    subprocess.run([*launcher, *given], env=own, check=True, timeout=900)


KILL_ONCE = """
import os, signal
from pathlib import Path
from lightning.pytorch import Callback

class KillOnce(Callback):
    def __init__(self, marker: str) -> None:
        self.marker = Path(marker)

    def on_train_batch_start(self, trainer, *_) -> None:
        if trainer.global_step == 5 and trainer.global_rank == 1 and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
"""


# promise: ray
@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install 'smollit[ray]'")
def test_workers_of_ray_go_on_after_one_is_killed(tiny_model: Path, cache_dir: Path, tmp_path: Path) -> None:
    """Two workers, of which one is killed after step 5: Ray starts both again, from the checkpoint of step 4."""
    run, whole, marker = tmp_path / "run", tmp_path / "whole", tmp_path / "killed"
    alone(*words(tiny_model, cache_dir, whole, steps=6))
    (tmp_path / "kill_once.py").write_text(KILL_ONCE)
    kill = ["--trainer.callbacks+=kill_once.KillOnce", f"--trainer.callbacks.marker={marker}"]
    by_ray(tmp_path, *words(tiny_model, cache_dir, run, steps=6), *kill)
    assert marker.exists()
    assert_same(run, whole)


# promise: many-machines
@pytest.mark.parametrize(("code", "restarts", "requeues"), [(143, "0", True), (143, "100", False), (1, "0", False)])
def test_a_slurm_job_goes_back_into_the_queue_after_a_sigterm(
    code: int, restarts: str, requeues: bool, tmp_path: Path
) -> None:
    """With stand-ins for srun and scontrol: 143 is 128 + SIGTERM, with which `fit` ends after it has saved. An error
    ends the job, as do a hundred restarts; its exit code is that of `fit`."""
    for name, line in (("srun", f"exit {code}"), ("scontrol", "")):
        (tmp_path / name).write_text(f'#!/bin/sh\necho {name} "$@"\n{line}\n')
        (tmp_path / name).chmod(0o755)
    own = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "4", "SLURM_JOB_ID": "7"}
    command = ["bash", str(LAUNCH / "slurm.sh"), "--config", "configs/sft.yaml"]
    done = subprocess.run(
        command, env=own | {"SLURM_RESTART_COUNT": restarts}, capture_output=True, text=True, check=False
    )
    assert done.returncode == code
    assert (
        "fit --config configs/sft.yaml --trainer.strategy ddp --trainer.num_nodes 2 --trainer.devices 4" in done.stdout
    )
    assert ("scontrol requeue 7" in done.stdout) == requeues
