"""The command `verify`: an export against its certificate, and against what a chat model must have."""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from smollit.commands.certificate import (
    FILE,
    PROBE,
    Certificate,
    changed_files,
    names_in,
    probe_loss,
    read_certificate,
    sha256,
)
from smollit.commands.command import FolderCommand
from smollit.errors import first_line
from smollit.models.pretrained import adapter_base, load_config, load_pretrained, no_progress_bar

TOLERANCE = 1e-3  # of the probe's loss: another version or device rounds differently


@dataclass(frozen=True)
class Check:
    """One line of the result: what was checked, whether it holds, and what was found."""

    name: str
    ok: bool
    detail: str


@dataclass(kw_only=True)
class VerifyCommand(FolderCommand):
    """Check an export: its files, weights, tokenizer, template and stop tokens.

    The exit code is 1 if a check fails.

    Args:
        json: Print one JSON object per folder instead of lines.
    """

    json: bool = False

    def run(self) -> None:
        """Check each folder, and print a line per check."""
        results = {folder: list(verify(Path(folder))) for folder in self.folders}
        for folder, checks in results.items():
            ok = all(check.ok for check in checks)
            if self.json:
                print(json.dumps({"folder": folder, "ok": ok, "checks": [asdict(check) for check in checks]}))
                continue
            print(folder)
            for check in checks:
                print(f"  {'ok  ' if check.ok else 'FAIL'}  {check.name:<11}  {check.detail}")
        if not all(check.ok for checks in results.values() for check in checks):
            sys.exit(1)


def verify(folder: Path) -> Iterator[Check]:
    """The checks of a folder.

    Raises:
        ValueError: If there is no such folder.
    """
    if not folder.is_dir():
        raise ValueError(f"`verify` needs the folder of an export, and {folder} is not a folder")
    certificate = read_certificate(folder)
    if certificate is None or not isinstance(certificate["files"], dict):
        yield Check("certificate", False, f"there is no {FILE} with hashes: no export of this version wrote the folder")
        certificate = None
    else:
        step = "" if certificate.get("step") is None else f", step {certificate['step']:,}"
        what = certificate.get("dtype", "an adapter")
        yield Check("certificate", True, f"smollit {certificate['versions']['smollit']}, {what}{step}")
        yield check_files(folder, certificate)
    try:
        model, missing = load(folder)
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # whatever a damaged file makes of a library
        yield Check("loads", False, f"transformers can't load it: {first_line(error)}")
        return
    yield check_weights(model, missing)
    yield check_tokenizer(model, tokenizer)
    yield from checks_of_chat(model, tokenizer, certificate)


def load(folder: Path) -> tuple[PreTrainedModel, list[str]]:
    """The model, and the weights of its config.json that the folder lacks; an adapter on its base model."""
    if adapter_base(str(folder)):
        return load_pretrained(str(folder), load_config(str(folder)), torch.float32).eval(), []
    with no_progress_bar(True):
        loaded: Any = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, trust_remote_code=False)
    model, info = loaded
    return model.eval(), sorted(info["missing_keys"])


def check_files(folder: Path, certificate: Certificate) -> Check:
    """Whether all files are as they were written."""
    changed = changed_files(folder, certificate)
    if changed:
        return Check("files", False, f"changed or missing since the export: {', '.join(changed)}")
    more = sorted(set(names_in(folder)) - {FILE, *certificate["files"]})
    others = f"; not of the export: {', '.join(more)}" if more else ""
    return Check("files", True, f"{len(certificate['files'])} files have the hashes of the export{others}")


def check_weights(model: PreTrainedModel, missing: list[str]) -> Check:
    """Whether all weights are there and finite."""
    bad = [name for name, weight in model.state_dict().items() if not torch.isfinite(weight).all()]
    if missing or bad:
        return Check("weights", False, f"missing: {missing[:3]}; not finite: {bad[:3]}")
    return Check("weights", True, f"{sum(weight.numel() for weight in model.parameters()):,}, all finite")


def check_tokenizer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Check:
    """Whether each token has an embedding."""
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, torch.Tensor)
    embeddings = weight.shape[0]
    return Check("tokenizer", len(tokenizer) <= embeddings, f"{len(tokenizer):,} tokens, {embeddings:,} embeddings")


def checks_of_chat(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, certificate: Certificate | None
) -> Iterator[Check]:
    """Template, stop tokens, and the loss of a chat."""
    if not tokenizer.chat_template:
        yield Check("template", False, "the tokenizer has no chat template")
        return
    text = str(tokenizer.apply_chat_template(PROBE, tokenize=False))
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    known = certificate["probe"] if certificate else {}
    for name, value, what in (("text", text, "renders a chat"), ("ids", ids, "tokenizes a chat")):
        if known and sha256(value) != known[name]:
            yield Check("template", False, f"this version of transformers {what} differently from the export")
            return
    yield Check("template", True, f"a chat renders to {len(ids)} tokens" + (", those of the export" if known else ""))
    texts: list[str] = (certificate or {}).get("stop_strings", [])
    if certificate and "stop_ids" not in certificate:  # an adapter, whose generation settings are those of its base
        texts = [*texts, tokenizer.eos_token]
    yield check_stops(model, tokenizer, text, texts)
    loss = probe_loss(model, ids)
    if "loss" in known:
        ok = abs(loss - known["loss"]) <= TOLERANCE * max(abs(known["loss"]), 1)
        yield Check("logits", ok, f"-log p of the chat is {loss:.4f} per token, at the export {known['loss']:.4f}")


def check_stops(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, texts: list[str]) -> Check:
    """Whether generation stops at the token, or one of the texts, that ends an assistant turn."""
    settings = model.generation_config
    stops = (settings.eos_token_id if settings else None) or []
    stops = stops if isinstance(stops, list) else [stops]
    marks = [str(tokenizer.convert_ids_to_tokens(stop)) for stop in stops]
    marks += [*texts, *((settings and settings.stop_strings) or [])]  # versions before 0.3 wrote them there
    rest = text.rpartition(PROBE[-1]["content"])[2]
    if any(mark and mark in rest for mark in marks):
        return Check("stops", True, f"generation stops at {', '.join(map(repr, marks))}")
    return Check("stops", False, f"generation stops at {marks}, and none of them ends an assistant turn ({rest!r})")
