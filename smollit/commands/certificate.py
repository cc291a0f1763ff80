"""The certificate of an export, read: smollit_export.json says what was exported, from what, and what was verified."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from smollit.paths import read_mapping

FILE = "smollit_export.json"  # marks a folder as an export, and lists its files
PROBE = [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "4"}]
Certificate = dict[str, Any]


def read_certificate(folder: Path) -> Certificate | None:
    """The certificate of a folder; None if it is no export."""
    return read_mapping(folder / FILE) or None


def changed_files(folder: Path, certificate: Certificate, *, largest: int | None = None) -> list[str]:
    """Files of an export that are missing or not as they were written.

    Args:
        folder: The export.
        certificate: Its certificate.
        largest: Bytes of the largest file that is read; None reads all.
    """
    hashes: dict[str, str] = certificate["files"]
    is_read = {name: largest is None or (folder / name).stat().st_size <= largest for name in names_in(folder)}
    return [name for name, known in hashes.items() if is_read.get(name, True) and sha256(folder / name) != known]


def names_in(folder: Path) -> list[str]:
    """Names of the files in a folder."""
    return sorted(path.name for path in folder.iterdir())


@torch.no_grad()
def probe_loss(model: PreTrainedModel, ids: list[int]) -> float:
    """Mean -log p of the tokens of the probe."""
    tokens = torch.tensor([ids])
    logits = model(input_ids=tokens, use_cache=False).logits[0, :-1].float()
    return float(torch.nn.functional.cross_entropy(logits, tokens[0, 1:]))


def sha256(content: Path | str | list[int]) -> str:
    """The SHA-256 of a file, a text, or numbers; empty for a file that is not there."""
    if isinstance(content, Path):
        if not content.is_file():
            return ""
        with content.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    text = content if isinstance(content, str) else json.dumps(content)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
