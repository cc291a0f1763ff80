"""Folders of shards, as torch.distributed.checkpoint writes them: verified, and read without executing code."""

import hashlib
import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader, load
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, TensorStorageMetadata

METADATA = ".metadata"  # torch's index of a folder: a pickle, and the only part without a checksum of its own
DIGEST = "metadata.sha256"  # smollit's checksum of it
EXTRAS = "meta.pt"  # Lightning's file for all that is not sharded
# All that an index consists of. Any other name in it would be imported, and could be called.
ALLOWED = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "pathlib": {"PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"},
    "collections": {"OrderedDict"},
}


class MetadataUnpickler(pickle.Unpickler):
    """Reads an index, and nothing else: a pickle can name any function, and reading it would call that function."""

    def find_class(self, module: str, name: str) -> Any:
        """One of torch's classes for an index.

        Raises:
            UnpicklingError: If the pickle names anything else.
        """
        if module == "torch":
            value = torch.__dict__.get(name)
            if value is torch.Size or isinstance(value, torch.dtype | torch.layout):
                return value
        elif name in ALLOWED.get(module, ()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{METADATA} names {module}.{name}, which is no part of an index: not executed")


def write_digest(folder: Path) -> None:
    """Write the checksum of a folder's index; its other files have checksums inside."""
    (folder / DIGEST).write_text(_digest(folder), encoding="ascii")


def verify_shards(folder: Path) -> None:
    """Read all files of a folder once, and compare them with their checksums.

    Raises:
        Exception: If a file is missing or damaged, or holds anything but tensors and plain values; names the file.
    """
    digest = folder / DIGEST
    if digest.is_file() and digest.read_text(encoding="ascii") != _digest(folder):  # older folders have none
        raise ValueError(f"{METADATA} differs from its checksum")
    with (folder / METADATA).open("rb") as file:
        metadata = MetadataUnpickler(file).load()
    if (folder / EXTRAS).is_file():
        verify_zip(folder / EXTRAS)
    for index, place in metadata.storage_data.items():
        content = _slice(folder, place.relative_path, place.offset, place.length)
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if archive.testzip() is not None:
                raise ValueError(f"{index.fqn} in {place.relative_path} differs from its checksum")
        if isinstance(metadata.state_dict_metadata[index.fqn], BytesStorageMetadata):
            # torch unpickles these without restrictions when a run resumes.
            torch.load(io.BytesIO(content), weights_only=True)


def verify_zip(path: Path, *, values_only: bool = False) -> None:
    """Compare the records of a file that torch.save wrote with their CRC-32, which torch.load does not do.

    Args:
        path: The file.
        values_only: Leave out the tensors: the rest is small.

    Raises:
        ValueError: If one differs, or the file is truncated.
        BadZipFile: If its directory is damaged.
    """
    if not zipfile.is_zipfile(path):
        raise ValueError("it is truncated, or of another kind")
    with zipfile.ZipFile(path) as archive:
        if values_only:
            for name in archive.namelist():
                if name.endswith("/data.pkl"):
                    archive.read(name)
        elif (damaged := archive.testzip()) is not None:
            raise ValueError(f"{damaged} in it differs from its checksum")


def read_shards(folder: Path, wanted: str) -> dict[str, Tensor]:
    """The full tensors whose parameter names begin with `wanted`, from a folder that was verified."""
    metadata: Metadata = FileSystemReader(folder).read_metadata()
    found = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in metadata.state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata) and _parameter(name).startswith(wanted)
    }
    if found:
        load(found, checkpoint_id=folder, no_dist=True)
    return {_parameter(name): value for name, value in found.items()}


def _parameter(name: str) -> str:
    """The parameter's name in the module: Lightning stores the weights under `state_dict` (FSDP2) or `model` (FSDP)."""
    return name.removeprefix("state_dict.").removeprefix("model.")


def _digest(folder: Path) -> str:
    return hashlib.sha256((folder / METADATA).read_bytes()).hexdigest()


def _slice(folder: Path, name: str, offset: int, length: int) -> bytes:
    with (folder / Path(name).name).open("rb") as file:
        file.seek(offset)
        return file.read(length)
