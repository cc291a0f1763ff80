"""The Arrow cache of examples: each part of a split is encoded once, and found by a key of all that changes tokens.

A folder of the cache appears complete or not at all. Its `files.json` has the size of each file: a folder that was
damaged since, or whose content never reached the disk, is made anew.
"""

import errno
import hashlib
import json
import logging
import os
import re
import shutil
import sys
import time
import uuid
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Features, Value
from datasets import Sequence as Lists
from numpy.typing import NDArray

from smollit.data.encoding.counts import count_examples
from smollit.data.encoding.encoder import FORMAT_VERSION, Encoder
from smollit.data.encoding.steps import PAIR_NUMBERS, TOKEN_COLUMNS
from smollit.data.sources.hub import quiet_datasets
from smollit.data.sources.source import Source
from smollit.data.template.parts import named_parts

log = logging.getLogger("smollit.data")
SIZES = "files.json"
PARTIAL = re.compile(r"\..+-[0-9a-f]{32}")  # the name of a build that is not finished
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
STALE_SECONDS = 3600  # a build writes every few seconds: one that has not written for this long is dead


def cache_key(source: Source, encoder: Encoder) -> str:
    """Hash of everything that changes the tokens: rows and their format, tokenizer, template, options, version."""
    tokenizer, form = encoder.template.tokenizer, encoder.format
    parts: dict[str, object] = {
        "source": source.fingerprint,
        "format": [form.name, form.columns, form.late, asdict(form.roles), form.media, sorted(form.labels)],
        "tokenizer": encoder.template.tokenizer_hash,
        "special_tokens": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "template": encoder.template.cache_text,
        "options": asdict(encoder.options),
        "version": FORMAT_VERSION,
    }
    if form.ranking:
        parts["ranking"] = [form.ranking.text, form.pairs_of]
    if form.convert:
        parts["convert"] = form.convert.key
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def build(source: Source, encoder: Encoder, folder: Path, num_proc: int | None) -> None:
    """Encode the rows into `folder`, which appears complete or not at all.

    Raises:
        ValueError: If a line of a JSON Lines file is not JSON, or the cache folder can't be written to.
    """
    temporary = folder.parent / f".{folder.name}-{uuid.uuid4().hex}"
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise ValueError(f"`data.cache_dir`: {folder.parent} can't be written to: {error.strerror}") from error
    remove_stale(folder.parent)
    try:
        _write(source, encoder, temporary, num_proc)
        seal(temporary)
        publish(temporary, folder)
    except Exception as error:
        name_folder(error, folder.parent)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def name_folder(error: BaseException | None, folder: Path) -> None:
    """Give a write that found no room the name of its folder; datasets raises another error while it handles it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in NO_ROOM and error.filename is None:
            error.filename = str(folder)
        error = error.__cause__ or error.__context__


def seal(folder: Path) -> None:
    """Write the content of a finished build to the disk, and the sizes of its files beside them."""
    sizes = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        sizes[str(file.relative_to(folder))] = file.stat().st_size
        _sync(file)
    (folder / SIZES).write_text(json.dumps(sizes), encoding="utf-8")
    _sync(folder / SIZES)


def damage(folder: Path) -> str:
    """What is wrong with a folder of the cache, as `report.json is missing`; empty if it is whole."""
    try:
        sizes = json.loads((folder / SIZES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"{folder / SIZES} can't be read"
    for name, size in sizes.items():
        file = folder / name
        if not file.is_file() or file.stat().st_size != size:
            return f"{file} is {'truncated or changed' if file.is_file() else 'missing'}"
    return ""


def _sync(file: Path) -> None:
    with file.open("rb") as content:
        os.fsync(content.fileno())


def publish(temporary: Path, folder: Path) -> None:
    """Give a finished build its name; if another process was first, its build is used."""
    try:
        os.replace(temporary, folder)
    except OSError:
        if not folder.exists():
            raise


def remove_stale(parent: Path) -> None:
    """Remove the files of killed builds; never a build that is in progress."""
    for partial in filter(lambda path: PARTIAL.fullmatch(path.name), parent.iterdir()):
        newest = max(_changed(path) for path in (partial, *partial.rglob("*")))
        if time.time() - newest > STALE_SECONDS:
            shutil.rmtree(partial, ignore_errors=True)


@dataclass(frozen=True)
class Numbered:
    """An encoder that counts rows as the source does, whichever of them are used.

    Args:
        encoder: Rows and their numbers -> examples.
        numbers: The numbers of the rows that are used; None if all are.
    """

    encoder: Encoder
    numbers: NDArray[np.int64] | None

    def __call__(self, rows: dict[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        """Columns of examples; `indices` count the rows that are used."""
        return self.encoder(rows, indices if self.numbers is None else self.numbers[indices].tolist())


def _write(source: Source, encoder: Encoder, folder: Path, num_proc: int | None) -> None:
    """Encode the rows into files of an empty folder: examples/ with the good ones, and report.json."""
    num_proc = min(num_proc or 1, len(source.rows))
    with nullcontext() if sys.stderr.isatty() else quiet_datasets():
        examples = source.rows.map(
            Numbered(encoder, source.numbers),
            batched=True,
            with_indices=True,
            num_proc=num_proc if num_proc > 1 else None,
            remove_columns=source.rows.column_names,
            features=features_of(encoder),
            cache_file_name=str(folder / "all.arrow"),
            new_fingerprint=folder.name.strip(".")[:32],  # datasets takes no more than 64 characters
            desc="tokenizing",
        )
    report = replace(count_examples(examples), source_rows=source.num_rows, left_out=source.left_out)
    with quiet_datasets():
        kept = examples.filter(_is_good, input_columns="problem", keep_in_memory=False)
        kept.remove_columns(["problem", "detail", "unprinted"]).save_to_disk(folder / "examples")
    (folder / "report.json").write_text(json.dumps(asdict(report), indent=2), encoding="utf-8")
    for leftover in folder.glob("*.arrow"):
        leftover.unlink()


def features_of(encoder: Encoder) -> Features:
    """The columns of examples, and their types."""
    kind = encoder.options.kind
    ids = {name: Lists(Value("int32")) for name in TOKEN_COLUMNS[kind]}
    numbers = {
        name: Value("int64")
        for name in ("length", "full_length", "loss_tokens", "control", "row", "digest", "other_digest")
    }
    is_pair = kind == "preference"
    scores = {"score_gap": Value("float32")} | dict.fromkeys(PAIR_NUMBERS, Value("int64")) if is_pair else {}
    texts = {name: Value("string") for name in ("problem", "detail")}
    other = {"truncated": Value("bool"), "trailing": Value("bool"), "unprinted": Lists(Value("string"))}
    starts = {"response_start": Value("int64")} if named_parts(encoder.options.train_on) else {}
    return Features(ids | numbers | scores | texts | other | starts)


def _is_good(problem: str) -> bool:
    return problem == ""


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # another process finished or removed it meanwhile
        return time.time()
