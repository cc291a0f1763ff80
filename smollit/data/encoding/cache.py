"""The Arrow cache of examples: each part of a split is encoded once, and found by a key of all that changes tokens."""

import hashlib
import json
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, Value, load_from_disk
from datasets import Sequence as Lists
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from numpy.typing import NDArray

from smollit.data.encoding.counts import count_examples
from smollit.data.encoding.encoder import FORMAT_VERSION, EncodeOptions, Encoder
from smollit.data.encoding.report import Report, verify_report
from smollit.data.encoding.steps import TOKEN_COLUMNS
from smollit.data.formats.detect import detect_format
from smollit.data.formats.format import GROUPED
from smollit.data.formats.groups import Groups
from smollit.data.formats.messages import OddTurns
from smollit.data.formats.ranking import PairsOf
from smollit.data.sources.converter import Converter
from smollit.data.sources.mixture import Part, load_part
from smollit.data.sources.readers import quiet_datasets
from smollit.data.sources.source import Source
from smollit.data.template.template import ChatTemplate

log = logging.getLogger("smollit.data")
NUM_HEAD_ROWS = 20  # rows by which the format is detected
PARTIAL = re.compile(r"\..+-[0-9a-f]{32}")  # the name of a build that is not finished
STALE_SECONDS = 3600  # a build writes every few seconds: one that has not written for this long is dead


@dataclass(frozen=True)
class EncodedPart:
    """One part of a split, and its examples in the cache.

    Args:
        label: What logs and reports call it.
        part: The part as the user configured it.
        source: Its rows.
        encoder: Rows -> examples.
        cache_dir: Folder of all encoded data.
    """

    label: str
    part: Part
    source: Source
    encoder: Encoder
    cache_dir: Path

    @cached_property
    def folder(self) -> Path:
        """Its folder in the cache. A streamed part has none, and never calls this."""
        return self.cache_dir / cache_key(self.source, self.encoder)

    def build(self, num_proc: int | None) -> None:
        """Encode it, unless the cache has it.

        Raises:
            ValueError: If a line of a JSON Lines file is not JSON.
        """
        if not self.folder.exists():
            build(self.source, self.encoder, self.folder, num_proc)

    def read(self) -> tuple[Dataset, Report]:
        """Its examples and their report, from the cache.

        Raises:
            ValueError: If the cache does not have it.
        """
        if not self.folder.exists():
            raise ValueError(f"split {self.label} is not tokenized yet: call prepare_data() before setup()")
        report = json.loads((self.folder / "report.json").read_text(encoding="utf-8"))
        return load_from_disk(str(self.folder / "examples")), Report(**report)

    def load(self, max_dropped_share: float) -> tuple[Dataset, Report]:
        """Its examples and their report, which is logged.

        Raises:
            ValueError: If the cache does not have it, or a larger fraction of its rows than allowed can't be used.
        """
        examples, report = self.read()
        _log_report(report, self.label)
        verify_report(report, self.label, max_dropped_share)
        return examples, report


def find_part(
    part: Part,
    *,
    label: str,
    template: ChatTemplate,
    options: EncodeOptions,
    extra_roles: Sequence[str] = (),
    odd_turns: OddTurns = "drop",
    pairs_of: PairsOf = "best-worst",
    convert: str | None = None,
    cache_dir: Path,
    seed: int = 0,
    streaming: bool = False,
) -> EncodedPart:
    """Find a part's rows and detect their format; nothing is tokenized yet.

    Args:
        part: The part as the user configured it.
        label: What logs and reports call it.
        template: Renders and tokenizes.
        options: What changes tokens besides rows, tokenizer and template.
        extra_roles: Roles that messages may have besides the known ones.
        odd_turns: What happens to turns that follow their own kind.
        pairs_of: Which pairs are made of several responses.
        convert: Function that turns each row into one of a known format.
        cache_dir: Folder of all encoded data.
        seed: Seed of the draw of `max_rows`.
        streaming: Whether its rows are only streamed.

    Raises:
        ValueError: If there are no such rows, or no format fits them.
    """
    source = load_part(part, seed=seed, cache_dir=cache_dir, streaming=streaming)
    columns, where = source.columns(), f"split {part.split} of {part.dataset}"
    filtered = source.where.names if source.where else set()
    if filtered - set(columns):
        raise ValueError(
            f"`data.where` reads the column {sorted(filtered - set(columns))[0]!r}, which {where} does not have. Its"
            f" columns are {', '.join(columns)}"
        )
    head = source.head(NUM_HEAD_ROWS)
    converter = Converter(convert) if convert else None
    if converter:
        head = [converted for row in head for converted in converter(row)]
        columns = list(dict.fromkeys(name for row in head for name in row))
    form = detect_format(
        columns,
        head,
        kind=options.kind,
        format=part.format,
        mapping=part.columns,
        extra_roles=extra_roles,
        odd_turns=odd_turns,
        pairs_of=pairs_of,
        filtered=filtered,
        where=where,
    )
    form = replace(form, convert=converter)
    if form.name in GROUPED:
        source = replace(source, regroup=Groups(form))
    _log_line(f"{label}: {form.describe()}")
    return EncodedPart(label, part, source, Encoder(template, options, form), cache_dir)


def cache_key(source: Source, encoder: Encoder) -> str:
    """Hash of everything that changes the tokens: rows and their format, tokenizer, template, options, version."""
    tokenizer = encoder.template.tokenizer
    parts: dict[str, object] = {
        "source": source.fingerprint,
        "format": [encoder.format.name, encoder.format.columns, asdict(encoder.format.roles), encoder.format.media],
        "tokenizer": encoder.template.tokenizer_hash,
        "special_tokens": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "template": encoder.template.cache_text,
        "options": asdict(encoder.options),
        "version": FORMAT_VERSION,
    }
    if encoder.format.ranking:
        parts["ranking"] = [encoder.format.ranking.text, encoder.format.pairs_of]
    if encoder.format.convert:
        parts["convert"] = encoder.format.convert.key
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def build(source: Source, encoder: Encoder, folder: Path, num_proc: int | None) -> None:
    """Encode the rows into `folder`, which appears complete or not at all.

    Raises:
        ValueError: If a line of a JSON Lines file is not JSON.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(folder.parent)
    temporary = folder.parent / f".{folder.name}-{uuid.uuid4().hex}"
    temporary.mkdir()
    try:
        _write(source, encoder, temporary, num_proc)
        publish(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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
    examples = source.rows.map(
        Numbered(encoder, source.numbers),
        batched=True,
        with_indices=True,
        num_proc=num_proc if num_proc and num_proc > 1 else None,
        remove_columns=source.rows.column_names,
        features=_features(encoder),
        cache_file_name=str(folder / "all.arrow"),
        new_fingerprint=folder.name.strip(".")[:32],  # datasets takes no more than 64 characters
        desc="tokenizing",
    )
    report = count_examples(examples)
    with quiet_datasets():
        kept = examples.filter(_is_good, input_columns="problem", keep_in_memory=False)
        kept.remove_columns(["problem", "detail"]).save_to_disk(folder / "examples")
    (folder / "report.json").write_text(json.dumps(asdict(report), indent=2), encoding="utf-8")
    for leftover in folder.glob("*.arrow"):
        leftover.unlink()


def _features(encoder: Encoder) -> Features:
    kind = encoder.options.kind
    ids = {name: Lists(Value("int32")) for name in TOKEN_COLUMNS[kind]}
    numbers = {name: Value("int64") for name in ("length", "full_length", "loss_tokens", "control", "row", "digest")}
    scores = {"score_gap": Value("float32")} if kind == "preference" else {}
    texts = {name: Value("string") for name in ("problem", "detail")}
    return Features(ids | numbers | scores | texts | {"truncated": Value("bool")})


def _is_good(problem: str) -> bool:
    return problem == ""


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # another process finished or removed it meanwhile
        return time.time()


@rank_zero_only
def _log_line(line: str) -> None:
    log.info("%s", line)


@rank_zero_only
def _log_report(report: Report, label: str) -> None:
    log.info("%s", report.summary(label))
    for line in report.warnings(label):
        log.warning("%s", line)
