"""The certificate of an export: smollit_export.json says what was exported, from what, and what was verified."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from smollit.commands.export.run import TrainedRun, versions, without_folders
from smollit.data.template.template import ChatTemplate
from smollit.paths import read_mapping

FILE = "smollit_export.json"  # marks a folder as an export, and lists its files
PROBE = [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "4"}]
CHECKS = (
    "weights and logits, read back, equal the trained ones to the bit",
    "a chat renders and texts tokenize and decode as in training",
)
Certificate = dict[str, Any]


def write_certificate(
    folder: Path,
    model: PreTrainedModel | None,
    *,
    source: str,
    template: ChatTemplate,
    run: TrainedRun | None,
    stop_texts: Sequence[str] = (),
) -> None:
    """Write the certificate, last of all files. `model` is None for an adapter alone."""
    text = template.render(PROBE).text
    ids = template.encode([text])[0]
    certificate: Certificate = {
        "source": without_folders(source),
        "versions": versions(),
        "template": {
            "name": template.name,
            "sha256": sha256(template.source),
            "tokenizer": template.tokenizer_hash,
            "assistant_turns": template.span_source,
        },
        "probe": {"text": sha256(text), "ids": sha256(ids)},
        "stop_strings": list(stop_texts),
    }
    if model is not None:
        certificate["probe"]["loss"] = probe_loss(model, ids)
        certificate |= {
            "dtype": str(model.dtype).removeprefix("torch."),
            "parameters": sum(weight.numel() for weight in model.parameters()),
            "stop_ids": model.generation_config.eos_token_id if model.generation_config else None,
            "checks": CHECKS,
        }
    if run is not None:
        loss_mask = "loss spans verified on every row that is counted as used"
        certificate |= {"method": run.method, "step": run.step, "settings": run.settings()}
        certificate |= {"data": {"splits": run.data(), "content": dict(run.content), "loss_mask": loss_mask}}
    certificate["files"] = {path.name: sha256(path) for path in sorted(folder.iterdir())}
    (folder / FILE).write_text(json.dumps(certificate, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


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
