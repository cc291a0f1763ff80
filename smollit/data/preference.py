"""PreferenceDataModule: pairs of answers, with what their scores decide."""

from dataclasses import replace
from typing import Any, ClassVar, Literal

from smollit.data.datamodule import ChatDataModule
from smollit.data.encoding.encoder import EncodeOptions
from smollit.data.formats.types import Kind
from smollit.data.sources.mixture import Part


class PreferenceDataModule(ChatDataModule):
    """Preference pairs (DPO) in any known format: a prompt, a chosen and a rejected answer.

    Args:
        dataset: Hub id, a folder laid out as on the hub, a file (.jsonl, .json, .csv, .parquet, .arrow; text also as
            .gz or .zst), or a glob; or a list of parts, each with `dataset`, `weight`, `max_rows` and more.
        train_split: Split to train on; a slice such as `train_prefs[:5%]` takes a part.
        val_split: Split to validate on, of each part; null validates on nothing.
        min_score_gap: Pairs whose score_chosen - score_rejected is smaller are dropped and counted.
        score_ties: `keep` or `drop` pairs whose scores are equal.
        **options: All other options of ChatDataModule.
    """

    kind: ClassVar[Kind] = "preference"

    def __init__(
        self,
        dataset: str | list[Part],
        train_split: str = "train",
        val_split: str | None = "test",
        min_score_gap: float | None = None,
        score_ties: Literal["keep", "drop"] = "keep",
        **options: Any,  # jsonargparse reads them from the base class: one list of options, not three
    ) -> None:
        super().__init__(dataset, train_split, val_split, **options)
        self.min_score_gap = min_score_gap
        self.score_ties: Literal["keep", "drop"] = score_ties

    def encode_options(self) -> EncodeOptions:
        """What changes tokens or drops pairs."""
        options = super().encode_options()
        return replace(options, min_score_gap=self.min_score_gap, score_ties=self.score_ties)
