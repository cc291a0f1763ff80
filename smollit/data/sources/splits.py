"""Which parts of which data sets stand behind train, val, test and predict."""

import re
from dataclasses import dataclass, field, replace

from smollit.data.formats.detect import FormatName
from smollit.data.sources.mixture import DEFAULT_SPLIT, Part


@dataclass(frozen=True)
class Splits:
    """What the user named; each part gets its split, and what it does not say itself of format and columns.

    Args:
        dataset: The parts.
        train: Split to train on, of parts that name none.
        val: Split to validate on.
        test: Split to test on; None is that of `val`.
        predict: Split whose prompts are answered; None is that of `val`.
        val_sets: Named sets to validate on, instead of `val`.
        format: Of parts that do not say it.
        columns: Of parts that do not say it.
    """

    dataset: list[Part]
    train: str
    val: str | None
    test: str | None = None
    predict: str | None = None
    val_sets: dict[str, Part] = field(default_factory=dict)
    format: FormatName = "auto"
    columns: dict[str, str] | None = None

    def __post_init__(self) -> None:
        for name, part in self.val_sets.items():
            if part.weight != 1:
                raise ValueError(f"`data.val_sets.{name}` has a weight, which is for training: leave it out")
            if not re.fullmatch(r"[\w-]+", name):
                raise ValueError(f"`data.val_sets` has the name {name!r}: take letters, digits, _ and - only")

    def parts(self, name: str) -> dict[str, list[Part]]:
        """The parts behind `train`, `val`, `test` or `predict`, by the key of their examples: `train`, `val/<set>`."""
        if name == "train":
            return {name: [self._complete(part, self.train) for part in self.dataset]}
        if name == "val" and self.val_sets:
            return {f"val/{key}": [self._complete(part, self.val)] for key, part in self.val_sets.items()}
        split = {"val": self.val, "test": self.test or self.val, "predict": self.predict or self.val}[name]
        # A part's own split, weight and cap are for training.
        own = [replace(part, split=split, weight=1.0, max_rows=None) for part in self.dataset]
        return {name: [self._complete(part, split) for part in own]} if split else {}

    def weights(self) -> list[float]:
        """How often each row of each training part is seen per epoch."""
        return [part.weight for part in self.dataset]

    def _complete(self, part: Part, split: str | None) -> Part:
        return replace(
            part,
            split=part.split or split or DEFAULT_SPLIT,
            format=self.format if part.format == "auto" else part.format,
            columns=self.columns if part.columns is None else part.columns,
        )


def label(key: str, part: Part, is_alone: bool) -> str:
    """What logs call a part: its split, its set's name, or both its split and data set."""
    if not is_alone:
        return f"{part.split} of {part.dataset}"
    return key.removeprefix("val/") if key.startswith("val/") else str(part.split)
