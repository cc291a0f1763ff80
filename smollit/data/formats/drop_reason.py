"""DropReason: every reason to drop a row, with what to do about it; BadRow, the one shape of failure on a row's way."""

from collections.abc import Set
from enum import StrEnum


class DropReason(StrEnum):
    """Why a row can't be used. The value is what reports count it under."""

    # Reading a row
    MALFORMED_JSON = "malformed JSON"
    MALFORMED_MESSAGES = "malformed messages"
    MALFORMED_WEIGHT = "malformed weight"
    MALFORMED_DIALOGUE = "malformed dialogue"
    MALFORMED_SCORE = "malformed score"
    UNKNOWN_ROLE = "unknown role"
    NULL_CONTENT = "null content"
    NOT_TEXT = "content is not text"
    EMPTY_CONVERSATION = "empty conversation"
    EMPTY_TEXT = "empty text"
    MISSING_VALUE = "missing value"
    EMPTY_RESPONSE = "empty response"
    EMPTY_PROMPT = "empty prompt"
    NO_PROMPT = "no prompt"
    NO_ASSISTANT_TURN = "no assistant turn"
    ROLE_ORDER = "odd role order"
    PROMPTS_DIFFER = "prompts differ"
    TWO_SYSTEM_TEXTS = "two system texts"
    NOT_AN_ASSISTANT_TURN = "response is not an assistant turn"
    # Scores of a pair
    SMALL_GAP = "score gap too small"
    TIED = "tied scores"
    NO_SCORES = "no scores"
    # Rendering and tokenizing
    REFUSED_BY_TEMPLATE = "template refuses the row"
    END_INSIDE = "end marker in a response"
    CONTROL_TEXT = "control text in a message"
    CONTROL_TEXT_ERROR = "control text in a message, which `data.control_text` refuses"
    UNESCAPABLE = "control text that can't be escaped"
    INVALID_UNICODE = "text is not valid Unicode"
    # Length and what is left to train on
    NO_LOSS_TOKENS = "no loss tokens"
    PROMPT_TOO_LONG = "prompt too long"
    TOO_LONG = "longer than max_length"
    TOO_LONG_ERROR = "longer than max_length, which `data.truncate` refuses"
    IDENTICAL = "identical responses"
    IDENTICAL_AFTER_CUT = "identical responses after truncation"

    @property
    def advice(self) -> str:
        """What to do about it; empty if the rows themselves must be fixed."""
        return ADVICE.get(self, "")

    @property
    def is_requested(self) -> bool:
        """Whether a setting asks to drop such rows: no reason to refuse a run."""
        return self in REQUESTED

    @property
    def is_fatal(self) -> bool:
        """Whether a setting asks to refuse the run for a single such row."""
        return self in FATAL


LENGTH = "raise `data.max_length`"
ESCAPE = "set `data.control_text` to escape"
ADVICE = {
    DropReason.IDENTICAL_AFTER_CUT: LENGTH,
    DropReason.PROMPT_TOO_LONG: LENGTH,
    DropReason.NO_LOSS_TOKENS: (
        f"{LENGTH} where responses were cut away, or change `data.train_on` where no turn has its roles"
    ),
    DropReason.TOO_LONG: LENGTH,
    DropReason.TOO_LONG_ERROR: f"{LENGTH}, or set `data.truncate` to right, left-turns or drop",
    DropReason.CONTROL_TEXT: ESCAPE,
    DropReason.CONTROL_TEXT_ERROR: f"{ESCAPE} or drop",
    DropReason.SMALL_GAP: "lower `data.min_score_gap`",
    DropReason.TIED: "set `data.score_ties` to keep",
    DropReason.NO_SCORES: "leave `data.min_score_gap` out",
    DropReason.REFUSED_BY_TEMPLATE: "set `data.chat_template` to chatml or to a Jinja file that fits these chats",
}
REQUESTED = {DropReason.CONTROL_TEXT, DropReason.TOO_LONG, DropReason.SMALL_GAP, DropReason.TIED}
FATAL = {DropReason.CONTROL_TEXT_ERROR, DropReason.TOO_LONG_ERROR}


class BadRow(ValueError):
    """A row that can't be used.

    Args:
        reason: What rows are counted under.
        detail: Where in the row and what came, such as "messages[1].content is null".
    """

    def __init__(self, reason: DropReason, detail: str) -> None:
        detail = detail.encode(errors="backslashreplace").decode()  # Arrow refuses a lone surrogate
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def what_to_do(reasons: Set[DropReason], kept: int, fraction: float) -> str:
    """Advice for a split that was refused.

    Args:
        reasons: Of the dropped rows.
        kept: Number of rows that are left.
        fraction: Fraction of rows that were dropped without being asked to.
    """
    if reasons == {DropReason.REFUSED_BY_TEMPLATE} and not kept:
        return f"the chat template is the reason: {DropReason.REFUSED_BY_TEMPLATE.advice}"
    advice = [line for reason, line in ADVICE.items() if reason in reasons]
    if any(not reason.advice for reason in reasons):
        advice.append("fix the rows")
    if kept and not reasons & FATAL:
        advice.append(f"raise `data.max_dropped_share` above {fraction:.3g} to continue without these rows")
    return "What to do: " + ", or ".join(dict.fromkeys(advice))
