"""EncodedPart: one part of a split and its examples; how its rows are found and their format is detected."""

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
from datasets import Dataset, load_from_disk
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from smollit.data.encoding.cache import build, cache_key, damage, features_of
from smollit.data.encoding.counts import count_examples
from smollit.data.encoding.encoder import Encoder
from smollit.data.encoding.options import EncodeOptions
from smollit.data.encoding.report import Report, verify_report
from smollit.data.encoding.select import LoadedPart
from smollit.data.formats.detection.detect import detect_format
from smollit.data.formats.format import GROUPED
from smollit.data.formats.groups import Groups
from smollit.data.formats.messages.roles import OddTurns
from smollit.data.formats.ranking import PairsOf
from smollit.data.sources.columns import has_column
from smollit.data.sources.converter import Converter
from smollit.data.sources.files import Row
from smollit.data.sources.mixture import Part, load_part
from smollit.data.sources.readers import columns_of
from smollit.data.sources.source import SCANNED_ROWS, Source
from smollit.data.template.template import ChatTemplate

log = logging.getLogger("smollit.data")
NUM_HEAD_ROWS = 20  # rows by which the format is detected


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
        """Encode it, unless the cache has it; a damaged folder of the cache is named, and made anew.

        Raises:
            ValueError: If a line of a JSON Lines file is not JSON.
        """
        if self.folder.exists() and (found := damage(self.folder)):
            log.warning("%s: the cache is damaged (%s): its rows are tokenized again", self.label, found)
            shutil.rmtree(self.folder)
        if not self.folder.exists():
            log.info("%s: tokenizing %s rows", self.label, f"{self.source.num_rows:,}")
            build(self.source, self.encoder, self.folder, num_proc)

    def read(self) -> LoadedPart:
        """Its examples and their report, from the cache.

        Raises:
            ValueError: If the cache does not have it, or has it damaged.
        """
        if not self.folder.exists():
            raise ValueError(f"split {self.label} is not tokenized yet: call prepare_data() before setup()")
        if found := damage(self.folder):
            raise ValueError(f"the cache of split {self.label} is damaged ({found}): delete the folder {self.folder}")
        report = json.loads((self.folder / "report.json").read_text(encoding="utf-8"))
        return LoadedPart(self.folder.name, load_from_disk(str(self.folder / "examples")), Report(**report))

    @property
    def can_sample(self) -> bool:
        """Whether the first rows can be read without the others."""
        return self.source.regroup is None and "%" not in self.source.row_slice and "-" not in self.source.row_slice

    def sample(self, num_rows: int) -> tuple[LoadedPart, dict[int, Row]]:
        """The examples of the first rows, without the cache, and these rows by their numbers."""
        rows = dict(islice(self.source.numbered(), num_rows))
        columns = self.encoder(columns_of(rows.values()), list(rows))
        examples = Dataset.from_dict(columns, features=features_of(self.encoder))
        report = replace(count_examples(examples), source_rows=len(rows))
        good = np.flatnonzero([problem == "" for problem in examples["problem"]])
        return LoadedPart("sample", examples.select(good), report), rows

    def load(self, max_dropped_share: float) -> LoadedPart:
        """Its examples and their report, whose counts are logged.

        Raises:
            ValueError: If the cache does not have it, or a larger fraction of its rows than allowed can't be used.
        """
        loaded = self.read()
        _log_line(loaded.report.summary(self.label))
        verify_report(loaded.report, self.label, max_dropped_share)
        return loaded

    @rank_zero_only
    def warn(self, report: Report) -> None:
        """Log the warnings of a report of it, from which repeats may be left out."""
        for line in report.warnings(self.label):
            log.warning("%s", line)


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
    missing = sorted(name for name in filtered if not has_column(columns, name))
    if missing:
        raise ValueError(
            f"`data.where` reads the column {missing[0]!r}, which {where} does not have. Its columns are"
            f" {', '.join(columns)}"
        )
    converter = Converter(convert) if convert else None
    head = source.head(NUM_HEAD_ROWS)
    if converter:
        converted = [each for row in head for each in converter(row)]
        converted = converted or [each for row in source.head(SCANNED_ROWS) for each in converter(row)]
        head = converted[:NUM_HEAD_ROWS]
        columns = list(dict.fromkeys(name for row in head for name in row))
    if converter and not head:
        raise ValueError(f"`data.convert: {convert}` leaves out the first {SCANNED_ROWS:,} rows of {where}, or all")
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


@rank_zero_only
def _log_line(line: str) -> None:
    log.info("%s", line)
