"""The command `doctor`: whether this machine is ready for a run, before one is started."""

import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import ClassVar, Literal

import torch
from packaging.requirements import Requirement
from packaging.version import Version
from rich.console import Console

from smollit import __version__
from smollit.commands.command import FolderCommand
from smollit.commands.console import say
from smollit.paths import cache_folder
from smollit.precision import bf16_flag

# Versions that must not be used, whatever else is installed, and why.
KNOWN_BAD = {("lightning", found): "malicious, see GHSA-w37p-236h-pfx3: remove it" for found in ("2.6.2", "2.6.3")}
SCARCE = 10 * 1024**3  # bytes: a checkpoint of a 360M model with its optimizer has 4.3 GB
MERGES = Version("2.39")  # the first glibc that merges what aligned allocations leave
MARKS = {"ok": "ok  ", "note": "note", "wrong": "WRONG"}


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Args:
        name: What.
        state: `note` works and is worth knowing; `wrong` must be fixed.
        text: What was found, and what to do.
    """

    name: str
    state: Literal["ok", "note", "wrong"]
    text: str


@dataclass(kw_only=True)
class DoctorCommand(FolderCommand):
    """Check this machine: versions, device, precision, disk, folders, network.

    Args:
        folders: Run folders that must be writable, and have room; none checks `runs`.
        json: Print the checks as JSON.
    """

    operands: ClassVar[tuple[str, str, str]] = ("*", "FOLDER", "Run folders to check; none checks `runs`.")
    json: bool = False

    def run(self) -> None:
        """Print each check.

        Raises:
            SystemExit: With code 1 if something is wrong.
        """
        names = [*(self.folders or ["runs"]), str(cache_folder())]
        folders = [folder for name in names for folder in check_folder(name)]
        checks = [*check_versions(), *check_device(), *folders, check_network()]
        if self.json:
            print(json.dumps([asdict(check) for check in checks], indent=2))
        else:
            for check in checks:
                say(Console(), f"{MARKS[check.state]}  {check.name}: {check.text}")
        if any(check.state == "wrong" for check in checks):
            raise SystemExit(1)


def check_versions() -> Iterator[Check]:
    """Python and smollit; each required package against what smollit supports."""
    yield Check("smollit", "ok", f"{__version__}, Python {platform.python_version()}, {platform.system()}")
    if sys.platform != "linux":
        yield Check("platform", "note", "smollit is tested on Linux; on Windows, use WSL")
    try:
        needed = [Requirement(line) for line in requires("smollit") or [] if "extra ==" not in line]
    except PackageNotFoundError:
        yield Check("smollit", "note", "is not installed: run `pip install -c constraints.txt -e .`")
        return
    for requirement in needed:
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            yield Check(requirement.name, "wrong", f"is missing, and {requirement.specifier or 'any'} is needed")
            continue
        bad = KNOWN_BAD.get((requirement.name, found))
        fits = requirement.specifier.contains(found, prereleases=True) and not bad
        said = found if fits else f"{found}: {bad or f'smollit needs {requirement.specifier}'}"
        yield Check(requirement.name, "ok" if fits else "wrong", said)


def check_device() -> Iterator[Check]:
    """The GPUs, or the CPU, and the precision that suits them."""
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        yield Check(f"GPU {number}", "ok", f"{properties.name}, {properties.total_memory / 1024**3:.0f} GiB")
    if torch.cuda.is_available():
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
        slow = "has no bf16: set `trainer.precision` to 16-mixed or 32-true"
        yield Check("precision", "ok" if fast else "note", "bf16-mixed is fast" if fast else slow)
        return
    if torch.backends.mps.is_available():
        memory = torch.mps.recommended_max_memory() / 1024**3
        yield Check("GPU", "ok", f"Apple's, by MPS, of the shared memory {memory:.0f} GiB")
        yield Check("precision", "ok", "32-true and bf16-mixed compute; there is no fp64")
        return
    yield Check("device", "note", f"no GPU: {os.cpu_count()} CPU cores, {torch.backends.cpu.get_cpu_capability()}")
    flag = bf16_flag()
    slow = "bf16 is slow on this CPU, which has neither AVX512-BF16 nor AMX: set `trainer.precision` to 32-true"
    fast = f"bf16-mixed is fast on this CPU ({flag}), for models of 100 million parameters or more"
    yield Check("precision", "ok" if flag else "note", fast if flag else slow)
    library, found = platform.libc_ver()
    if library == "glibc" and Version(found) < MERGES and "malloc" not in os.environ.get("LD_PRELOAD", ""):
        said = "keeps memory of freed tensors that later ones do not fit into, most of all with `model.adapter`"
        yield Check("allocator", "note", f"glibc {found} {said}; jemalloc by LD_PRELOAD does not: docs/performance.md")


def check_folder(name: str) -> Iterator[Check]:
    """Whether a folder, or the nearest one above it that exists, can be written to, and has room."""
    folder = Path(name).expanduser().absolute()
    nearest = next(parent for parent in (folder, *folder.parents) if parent.exists())
    try:
        with tempfile.NamedTemporaryFile(dir=nearest):
            free = shutil.disk_usage(nearest).free
    except OSError as error:
        yield Check(name, "wrong", f"{nearest} can't be written to ({error.strerror}): choose another folder")
        return
    room = f"writable, {free / 1024**3:.0f} GiB free"
    yield Check(name, "ok" if free > SCARCE else "note", room + ("" if free > SCARCE else ": checkpoints need more"))


def check_network() -> Check:
    """Whether Hugging Face's libraries are told to stay offline. Nothing is sent."""
    offline = os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE")
    said = "HF_HUB_OFFLINE is set: models and data sets come from local folders and caches only"
    return Check("Hub", "note" if offline else "ok", said if offline else "names of models and data may be downloaded")
