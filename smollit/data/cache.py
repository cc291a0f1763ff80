"""The Arrow cache of tokenised examples: built once, written atomically, found by a key of all that changes tokens."""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, Sequence, Value, load_from_disk

from smollit.data.encode import COLUMNS, FORMAT_VERSION, RAW, Encoder
from smollit.data.source import Source, malformed_lines

log = logging.getLogger(__name__)


@dataclass
class Report:
    """What became of the rows of one split; lengths are in tokens.

    Args:
        rows: Rows that came in.
        kept: Rows that can be trained.
        cut: Kept rows that lost tokens to `max_length`.
        control: Kept rows with special tokens written in their text.
        tokens: Positions of the kept rows.
        trained: Trained tokens of the kept rows.
        lengths: Quantiles p50, p95, max of the kept rows' lengths.
        dropped: Number of rows per cause.
        examples: Per cause, up to three "row N: what was wrong".
    """

    rows: int
    kept: int
    cut: int
    control: int
    tokens: int
    trained: int
    lengths: dict[str, int]
    dropped: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def dropped_share(self) -> float:
        """Share of rows that were dropped, 0 to 1."""
        return 1 - self.kept / self.rows

    def lines(self, split: str) -> list[str]:
        """The report as a person reads it."""
        share = self.trained / self.tokens if self.tokens else 0.0
        quantiles = ", ".join(f"{name} {value:,}" for name, value in self.lengths.items())
        lines = [
            f"{split}: {self.kept:,} of {self.rows:,} rows, trainable tokens {self.trained:,} / {self.tokens:,}"
            f" ({share:.1%}), lengths {quantiles}, {self.cut:,}/{self.kept:,} truncated"
        ]
        if self.control:
            lines.append(f"{split}: {self.control:,} rows hold the text of special tokens, which are read as such")
        return lines + [f"{split}: {line}" for line in self.drops()]

    def drops(self) -> list[str]:
        """One line per cause of dropped rows, most frequent first."""
        causes = sorted(self.dropped.items(), key=lambda item: -item[1])
        return [
            f"{count:,} of {self.rows:,} rows dropped, {cause}: {'; '.join(self.examples[cause])}"
            for cause, count in causes
        ]


def cache_key(source: Source, encoder: Encoder) -> str:
    """Hash of everything that changes the tokens: rows, tokenizer, template, kind, length and format."""
    tokenizer = encoder.template.tokenizer
    parts = {
        "source": source.fingerprint,
        "tokenizer": hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
        "special_tokens": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "template": encoder.template.text,
        "kind": encoder.kind,
        "max_length": encoder.max_length,
        "version": FORMAT_VERSION,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def build(source: Source, encoder: Encoder, folder: Path, num_proc: int | None) -> None:
    """Tokenise the rows into `folder`, which appears whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        examples = source.rows.map(
            encoder,
            batched=True,
            with_indices=True,
            num_proc=num_proc if num_proc and num_proc > 1 else None,
            remove_columns=source.rows.column_names,
            features=_features(encoder),
            cache_file_name=str(temporary / "all.arrow"),
            new_fingerprint=folder.name,
            desc="tokenising",
        )
        report = make_report(examples)
        if "malformed JSON" in report.dropped and RAW in source.rows.column_names:
            raise ValueError("malformed JSON Lines, mend these first:\n" + "\n".join(malformed_lines(source.files)))
        kept = examples.filter(_is_good, input_columns="problem", keep_in_memory=False)
        kept.remove_columns(["problem", "detail"]).save_to_disk(temporary / "examples")
        (temporary / "report.json").write_text(json.dumps(asdict(report), indent=2))
        for leftover in temporary.glob("*.arrow"):
            leftover.unlink()
        if not folder.exists():  # another process may have been first
            os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load(folder: Path) -> tuple[Dataset, Report]:
    """Examples and report of a built cache."""
    return load_from_disk(str(folder / "examples")), Report(**json.loads((folder / "report.json").read_text()))


def make_report(examples: Dataset) -> Report:
    """Count what was kept, cut and dropped."""
    columns = examples.select_columns(["problem", "detail", "row", "length", "trained", "cut", "control"]).to_pandas()
    good = columns[columns["problem"] == ""]
    bad = columns[columns["problem"] != ""]
    named = {
        cause: [f"row {row}: {detail}" for row, detail in zip(rows["row"][:3], rows["detail"][:3], strict=True)]
        for cause, rows in bad.groupby("problem")
    }
    lengths = good["length"].to_numpy() if len(good) else np.zeros(1, dtype=int)
    p50, p95 = np.percentile(lengths, [50, 95], method="nearest")
    return Report(
        rows=len(columns),
        kept=len(good),
        cut=int(good["cut"].sum()),
        control=int((good["control"] > 0).sum()),
        tokens=int(good["length"].sum()),
        trained=int(good["trained"].sum()),
        lengths={"p50": int(p50), "p95": int(p95), "max": int(lengths.max())},
        dropped={str(cause): int(count) for cause, count in bad["problem"].value_counts().items()},
        examples={str(cause): rows for cause, rows in named.items()},
    )


def _features(encoder: Encoder) -> Features:
    ids = {name: Sequence(Value("int32")) for name in COLUMNS[encoder.kind]}
    numbers = {name: Value("int64") for name in ("length", "trained", "control", "row")}
    texts = {name: Value("string") for name in ("problem", "detail")}
    return Features(ids | numbers | texts | {"cut": Value("bool")})


def _is_good(problem: str) -> bool:
    return problem == ""
