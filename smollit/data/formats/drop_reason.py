"""DropReason: every reason to drop a row, with advice; BadRow, the exception for a row that can't be used."""

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
    MALFORMED_TOOLS = "malformed tools or chat_template_kwargs"
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
    ROLE_ORDER_ERROR = "odd role order, which `data.odd_turns` refuses"
    NOT_MERGED = "odd role order, which can't be merged"
    PROMPTS_DIFFER = "prompts differ"
    TWO_SYSTEM_TEXTS = "two system texts"
    NOT_AN_ASSISTANT_TURN = "response is not an assistant turn"
    NOT_CONVERTED = "left out by `data.convert`"
    BAD_COMPLETION = "a bad completion, by a label that the first rows lack"
    NO_BETTER_RESPONSE = "no response is better than another"
    # Scores of a pair
    SMALL_GAP = "score gap too small"
    TIED = "tied scores"
    NO_SCORES = "no scores"
    # Rendering and tokenizing
    REFUSED_BY_TEMPLATE = "template refuses the row"
    UNPRINTED = "template prints nothing of a turn"
    END_INSIDE = "end marker in a response"
    CONTROL_TEXT = "control text in a message"
    CONTROL_TEXT_ERROR = "control text in a message, which `data.control_text` refuses"
    UNESCAPABLE = "control text that can't be escaped"
    INVALID_UNICODE = "text is not valid Unicode"
    # Length and loss tokens
    NO_LOSS_TOKENS = "no loss tokens"
    PROMPT_TOO_LONG = "prompt too long"
    TOO_LONG = "longer than max_length"
    TOO_LONG_ERROR = "longer than max_length, which `data.truncate` refuses"
    IDENTICAL = "identical responses"
    IDENTICAL_AFTER_CUT = "identical responses after truncation"
    IDENTICAL_AS_PRINTED = "identical responses as the template prints them"

    @property
    def advice(self) -> str:
        """What the user can do; empty if the rows themselves must be fixed."""
        return ADVICE.get(self, "")

    @property
    def is_requested(self) -> bool:
        """Whether a setting requests that such rows are dropped: they do not count towards refusing a run."""
        return self in REQUESTED

    @property
    def is_fatal(self) -> bool:
        """Whether a setting requests that a single such row refuses the run."""
        return self in FATAL


LENGTH = "raise `data.max_length`"
ESCAPE = "set `data.control_text` to escape"
ADVICE = {
    DropReason.IDENTICAL_AFTER_CUT: LENGTH,
    DropReason.PROMPT_TOO_LONG: LENGTH,
    DropReason.NO_LOSS_TOKENS: (
        f"{LENGTH} where responses were truncated away, or set `data.truncate` to left-turns and `data.train_on` to"
        " assistant, which keep earlier turns; change `data.train_on` where no turn has its roles"
    ),
    DropReason.TOO_LONG: LENGTH,
    DropReason.BAD_COMPLETION: (
        "put a row with its label first, so that `data.where` can choose by it, or set `data.columns: {label: ''}`, "
        "which takes all rows"
    ),
    DropReason.ROLE_ORDER: "set `data.odd_turns` to merge",
    DropReason.ROLE_ORDER_ERROR: "set `data.odd_turns` to merge or drop",
    DropReason.TOO_LONG_ERROR: f"{LENGTH}, or set `data.truncate` to right, left-turns or drop",
    DropReason.CONTROL_TEXT: ESCAPE,
    DropReason.CONTROL_TEXT_ERROR: f"{ESCAPE} or drop",
    DropReason.SMALL_GAP: "lower `data.min_score_gap`",
    DropReason.TIED: "set `data.score_ties` to keep",
    DropReason.NO_SCORES: "leave `data.min_score_gap` out",
    DropReason.END_INSIDE: "remove the end marker from the texts, as `data.convert` can: the template writes it",
    DropReason.UNPRINTED: "set `data.chat_template` to a Jinja file that prints tool calls",
    DropReason.IDENTICAL_AS_PRINTED: "set `data.chat_template` to a Jinja file that prints in what they differ",
    DropReason.REFUSED_BY_TEMPLATE: "set `data.chat_template` to chatml or to a Jinja file that fits these chats",
}
REQUESTED = {
    DropReason.CONTROL_TEXT,
    DropReason.TOO_LONG,
    DropReason.SMALL_GAP,
    DropReason.TIED,
    DropReason.NOT_CONVERTED,
    DropReason.NO_BETTER_RESPONSE,
}
FATAL = {DropReason.CONTROL_TEXT_ERROR, DropReason.TOO_LONG_ERROR, DropReason.ROLE_ORDER_ERROR}


class BadRow(ValueError):
    """A row that can't be used.

    Args:
        reason: The reason that the row is counted under.
        detail: The position in the row and the value found, such as "messages[1].content is null".
    """

    def __init__(self, reason: DropReason, detail: str) -> None:
        detail = detail.encode(errors="backslashreplace").decode()  # Arrow refuses a lone surrogate
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def what_to_do(reasons: Set[DropReason], kept: int, fraction: float) -> str:
    """Advice for a split that was refused.

    Args:
        reasons: Reasons of the dropped rows.
        kept: Number of kept rows.
        fraction: Fraction of rows that were dropped although no setting requests it.
    """
    if reasons == {DropReason.REFUSED_BY_TEMPLATE} and not kept:
        return f"the chat template is the reason: {DropReason.REFUSED_BY_TEMPLATE.advice}"
    advice = [line for reason, line in ADVICE.items() if reason in reasons]
    if any(not reason.advice for reason in reasons):
        advice.append("fix the rows")
    if kept and not reasons & FATAL:
        advice.append(f"raise `data.max_dropped_share` above {fraction:.3g} to continue without these rows")
    return "What to do: " + ", or ".join(dict.fromkeys(advice))
