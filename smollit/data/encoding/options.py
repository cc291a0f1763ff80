"""EncodeOptions: the settings that change the tokens of a row, and which pairs they leave out by their scores."""

from dataclasses import dataclass
from typing import Literal

from smollit.data.encoding.truncate import Truncate
from smollit.data.formats.drop_reason import BadRow, DropReason
from smollit.data.formats.types import Kind
from smollit.data.template.train_on import TrainOn

ControlTextChoice = Literal["escape", "drop", "error"]


@dataclass(frozen=True)
class EncodeOptions:
    """What changes the tokens of a row besides the row, the tokenizer and the template: part of the cache key.

    Args:
        kind: `chat` for SFT, `preference` for pairs.
        max_length: Longest sequence in tokens; for pairs, of the prompt and either response together.
        truncate: How longer rows are shortened: `right`, `left-turns`, `drop` or `error`.
        train_on: Turns with loss tokens: `assistant`, `last`, `all`, or roles, or parts of assistant turns.
        control_text: How text in messages that spells a control token is handled: `escape`, `drop` or `error`.
        min_score_gap: Smallest score_chosen - score_rejected of a pair; None keeps all.
        score_ties: Whether pairs with equal scores are kept.
    """

    kind: Kind
    max_length: int
    truncate: Truncate = "right"
    train_on: TrainOn = "assistant"
    control_text: ControlTextChoice = "escape"
    min_score_gap: float | None = None
    score_ties: Literal["keep", "drop"] = "keep"


def verify_scores(gap: float | None, options: EncodeOptions) -> None:
    """Refuse pairs whose scores don't differ enough.

    Raises:
        BadRow: If the scores are equal, too close to each other, or missing where they are needed.
    """
    if gap is None:
        if options.min_score_gap is not None:
            raise BadRow(DropReason.NO_SCORES, "`data.min_score_gap` needs score_chosen and score_rejected")
        return
    if gap == 0 and options.score_ties == "drop":
        raise BadRow(DropReason.TIED, "score_chosen and score_rejected are equal")
    if options.min_score_gap is not None and gap < options.min_score_gap:
        detail = f"score_chosen - score_rejected is {gap:g}, and min_score_gap is {options.min_score_gap:g}"
        raise BadRow(DropReason.SMALL_GAP, detail)
