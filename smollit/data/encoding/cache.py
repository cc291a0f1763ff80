"""The Arrow cache of tokenised examples: built once, written atomically, found by a key of all that changes tokens."""

import hashlib
import json
import os
import re
import shutil
import time
import uuid
from dataclasses import asdict
from pathlib import Path

from datasets import Dataset, Features, Sequence, Value, load_from_disk

from smollit.data.encoding.encoder import COLUMNS, FORMAT_VERSION, Encoder
from smollit.data.encoding.report import Report, make_report
from smollit.data.formats.drop_reason import DropReason
from smollit.data.sources.files import malformed, quiet_datasets
from smollit.data.sources.raw import RAW
from smollit.data.sources.source import Source

PARTIAL = re.compile(r"\..+-[0-9a-f]{32}")  # the name of a build that is not finished
STALE_SECONDS = 3600  # a build writes every few seconds: one that has not for so long is dead


def cache_key(source: Source, encoder: Encoder) -> str:
    """Hash of everything that changes the tokens: rows and their format, tokenizer, template, options, version."""
    tokenizer = encoder.template.tokenizer
    parts = {
        "source": source.fingerprint,
        "format": [encoder.format.name, encoder.format.columns, asdict(encoder.format.roles)],
        "tokenizer": encoder.template.tokenizer_hash,
        "special_tokens": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "template": encoder.template.cache_text,
        "options": asdict(encoder.options),
        "version": FORMAT_VERSION,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def build(source: Source, encoder: Encoder, folder: Path, num_proc: int | None) -> None:
    """Tokenise the rows into `folder`, which appears whole or not at all.

    Raises:
        ValueError: If a line of a JSON Lines file is not JSON.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(folder.parent)
    temporary = folder.parent / f".{folder.name}-{uuid.uuid4().hex}"
    temporary.mkdir()
    try:
        write_examples(source, encoder, temporary, num_proc)
        publish(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_examples(source: Source, encoder: Encoder, folder: Path, num_proc: int | None) -> None:
    """Tokenise the rows into files of an empty folder: examples/ with the good ones, and report.json."""
    examples = source.rows.map(
        encoder,
        batched=True,
        with_indices=True,
        num_proc=num_proc if num_proc and num_proc > 1 else None,
        remove_columns=source.rows.column_names,
        features=_features(encoder),
        cache_file_name=str(folder / "all.arrow"),
        new_fingerprint=folder.name.strip(".")[:32],  # datasets takes no more than 64 characters
        desc="tokenising",
    )
    report = make_report(examples)
    if DropReason.MALFORMED_JSON in report.dropped and RAW in source.rows.column_names:
        raise malformed(source.files)
    with quiet_datasets():
        kept = examples.filter(_is_good, input_columns="problem", keep_in_memory=False)
        kept.remove_columns(["problem", "detail"]).save_to_disk(folder / "examples")
    (folder / "report.json").write_text(json.dumps(asdict(report), indent=2), encoding="utf-8")
    for leftover in folder.glob("*.arrow"):
        leftover.unlink()


def publish(temporary: Path, folder: Path) -> None:
    """Give a finished build its name; another process may have been first, and its build is as good."""
    try:
        os.replace(temporary, folder)
    except OSError:
        if not folder.exists():
            raise


def remove_stale(parent: Path) -> None:
    """Remove what builds left behind that were killed; never one that is at work."""
    for partial in filter(lambda path: PARTIAL.fullmatch(path.name), parent.iterdir()):
        newest = max(_changed(path) for path in (partial, *partial.rglob("*")))
        if time.time() - newest > STALE_SECONDS:
            shutil.rmtree(partial, ignore_errors=True)


def load(folder: Path) -> tuple[Dataset, Report]:
    """Examples and report of a built cache."""
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return load_from_disk(str(folder / "examples")), Report(**report)


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # another process finished or removed it meanwhile
        return time.time()


def _features(encoder: Encoder) -> Features:
    kind = encoder.options.kind
    ids = {name: Sequence(Value("int32")) for name in COLUMNS[kind]}
    numbers = {name: Value("int64") for name in ("length", "full_length", "trained", "control", "row", "digest")}
    scores = {"score_gap": Value("float32")} if kind == "preference" else {}
    texts = {name: Value("string") for name in ("problem", "detail")}
    return Features(ids | numbers | scores | texts | {"cut": Value("bool")})


def _is_good(problem: str) -> bool:
    return problem == ""
