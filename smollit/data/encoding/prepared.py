"""One part of a split on its way from rows to examples: its format, its encoder, and its place in the cache."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from datasets import Dataset

from smollit.data.encoding import cache
from smollit.data.encoding.encoder import EncodeOptions, Encoder
from smollit.data.encoding.report import Report, check_report
from smollit.data.encoding.telling import say, tell
from smollit.data.formats.detect import recognise
from smollit.data.sources.mixture import Part, load_part
from smollit.data.sources.source import Source
from smollit.data.template.template import ChatTemplate

FIRST_ROWS = 20  # rows that tell formats apart


@dataclass(frozen=True)
class Prepared:
    """A part with all that its examples depend on.

    Args:
        label: What logs and reports call it.
        part: What the user named.
        source: Its rows.
        encoder: Rows -> examples.
        cache_dir: Folder of all tokenised data.
    """

    label: str
    part: Part
    source: Source
    encoder: Encoder
    cache_dir: Path

    @cached_property
    def folder(self) -> Path:
        """Its place in the cache; a part that is streamed has none, so this is not asked for."""
        return self.cache_dir / cache.cache_key(self.source, self.encoder)

    def build(self, num_proc: int | None) -> None:
        """Tokenise it, unless the cache has it."""
        if not self.folder.exists():
            cache.build(self.source, self.encoder, self.folder, num_proc)

    def load(self, max_dropped_share: float) -> tuple[Dataset, Report]:
        """Its examples from the cache, after its report was told.

        Raises:
            ValueError: If it is not in the cache, or too much of it can't be used.
        """
        if not self.folder.exists():
            raise ValueError(f"split {self.label} is not tokenised yet: call prepare_data() before setup()")
        examples, report = cache.load(self.folder)
        tell(report, self.label)
        check_report(report, self.label, max_dropped_share)
        return examples, report


def prepare(
    label: str,
    part: Part,
    template: ChatTemplate,
    options: EncodeOptions,
    extra_roles: Sequence[str],
    cache_dir: Path,
    seed: int,
    streaming: bool,
) -> Prepared:
    """Find a part's rows and recognise their format; nothing is tokenised yet.

    Raises:
        ValueError: If there are no such rows, or no format fits them.
    """
    source = load_part(part, seed, cache_dir, streaming)
    columns, head, where = source.columns(), source.head(FIRST_ROWS), f"split {part.split} of {part.dataset}"
    form = recognise(columns, head, options.kind, part.format, part.columns or {}, extra_roles, where)
    say(f"{label}: {form.describe()}")
    return Prepared(label, part, source, Encoder(template, options, form), cache_dir)
