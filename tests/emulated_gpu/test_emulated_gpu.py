"""Runs on one GPU, without a GPU: a device emulated on the CPU, against the same runs on the CPU.

The emulation knows what is refused, what is waited for, and what is computed; nothing of speed, memory or real kernels.
It changes torch for a whole process, so the runs are in a program of their own: runs.py, once for all tests below.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.conftest import ROOT
from tests.emulated_gpu.runs import CASES, Found

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent


def compiled(folder: Path) -> Path:
    """device.cpp as a library."""
    compiler, torch_folder, library = os.environ.get("CXX", "c++"), Path(torch.__file__).parent, folder / "device.so"
    assert shutil.which(compiler), f"the emulated GPU needs a C++ compiler, and there is no {compiler}: install g++"
    command = [compiler, "-std=c++20", "-shared", "-fPIC", str(HERE / "device.cpp"), "-o", str(library)]
    command += [f"-I{torch_folder / 'include'}", f"-L{torch_folder / 'lib'}", f"-Wl,-rpath,{torch_folder / 'lib'}"]
    made = subprocess.run([*command, "-ltorch_cpu", "-lc10"], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr[-6000:]
    return library


@pytest.fixture(scope="module")
def found(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Found]:
    """The results on `emulated` and on `cpu`, of two programs side by side."""
    folder = tmp_path_factory.mktemp("emulated-gpu")
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tiny_model)).save_pretrained(folder / "reference")
    # Preloaded, because torch asks for the device once, while it is imported.
    own = {"emulated": {"LD_PRELOAD": str(compiled(folder))}, "cpu": {}}
    common = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    processes = {}
    for device, environment in own.items():
        (folder / device).mkdir()
        words = [device, str(tiny_model), str(folder / "reference"), str(folder / device)]
        log = (folder / f"{device}.log").open("w")
        command = [sys.executable, str(HERE / "runs.py"), *words]
        processes[device] = subprocess.Popen(command, env=common | environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        codes = {device: process.wait(timeout=900) for device, process in processes.items()}
    finally:
        for process in processes.values():
            process.kill()
    logs = "\n".join((folder / f"{device}.log").read_text()[-6000:] for device in own)
    assert set(codes.values()) == {0}, logs
    return {device: json.loads((folder / device / "found.json").read_text()) for device in own}


def both(found: dict[str, Found], name: str) -> list[Found]:
    """What a run has found on each device."""
    results = [found[device][name] for device in ("emulated", "cpu")]
    errors = [result["error"] for result in results if "error" in result]
    assert not errors, errors[0]
    return results


# promise: no-waits, one-gpu
@pytest.mark.parametrize("name", CASES)
def test_a_run_on_a_gpu_has_the_losses_of_the_cpu(name: str, found: dict[str, Found]) -> None:
    """By step, to 1e-6 in fp32, and in half precision to 1 % by the kernel that `auto` takes there. Between the first
    and the last micro-batch of a step, the host waits for nothing."""
    on_gpu, on_cpu = both(found, name)
    is_half = CASES[name].precision != "32-true"
    assert on_gpu["losses"] == pytest.approx(on_cpu["losses"], rel=1e-2 if is_half else 1e-6)
    assert {"train/loss 3", "val/loss 2"} <= on_gpu["losses"].keys()
    assert on_gpu["device"] == "cuda:0"
    assert on_gpu["attention"] == ("varlen" if is_half else "documents")
    assert (on_gpu["kernel_calls"] > 0) == is_half
    assert on_gpu["waits"] == []


def test_scores_of_a_gpu_are_those_of_the_cpu(found: dict[str, Found]) -> None:
    """`score --chats` and `--pairs`, in fp32: each value with its interval, to 1e-6."""
    values = [
        [number for columns in result["table"].values() for interval in columns.values() for number in interval]
        for result in both(found, "score")
    ]
    assert len(values[0]) == 9
    assert values[0] == pytest.approx(values[1], rel=1e-6)


def test_the_emulation_refuses_and_waits_as_cuda_does(found: dict[str, Found]) -> None:
    """Else the runs above would say nothing."""
    expected = {
        "refuses": [
            "generator of the CPU",
            "tensors on two devices",
            "numpy",
            "kernel in fp32",
            "kernel with a wrong bound",
        ],
        "waits": ["item", "tolist", "mask", "copy to the GPU", "copy to the CPU"],
        "runs": ["copy without a wait", "kernel"],
    }
    assert found["emulated"]["emulation"] == {name: kind for kind, names in expected.items() for name in names}
