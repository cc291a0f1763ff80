"""What to do about dropped rows, by their cause."""

from smollit.data.chat import REFUSED
from smollit.data.control import CONTROL, CONTROL_ERROR
from smollit.data.encode import EQUAL_AFTER_CUT, NO_SCORES, PROMPT_TOO_LONG, SMALL_GAP, TIED, UNTRAINED
from smollit.data.truncate import TOO_LONG, TOO_LONG_ERROR

LENGTH = "raise `data.max_length`"
ESCAPE = "set `data.control_text` to escape"
ADVICE = {
    EQUAL_AFTER_CUT: LENGTH,
    PROMPT_TOO_LONG: LENGTH,
    UNTRAINED: f"{LENGTH} where answers were cut away, or change `data.train_on` where no turn has its roles",
    TOO_LONG: LENGTH,
    TOO_LONG_ERROR: f"{LENGTH}, or set `data.truncate` to right, left-turns or drop",
    CONTROL: ESCAPE,
    CONTROL_ERROR: f"{ESCAPE} or drop",
    SMALL_GAP: "lower `data.min_score_gap`",
    TIED: "set `data.score_ties` to keep",
    NO_SCORES: "leave `data.min_score_gap` out",
    REFUSED: "set `data.chat_template` to chatml or to a Jinja file that fits these chats",
}
WANTED = {CONTROL, TOO_LONG, SMALL_GAP, TIED}  # the user's options drop such rows: no reason to refuse a run
FATAL = (CONTROL_ERROR, TOO_LONG_ERROR)  # the user's options refuse a run for a single such row


def what_to_do(causes: set[str], kept: int, share: float) -> str:
    """Advice for a split that was refused.

    Args:
        causes: Of dropped rows.
        kept: Number of rows that are left.
        share: Share of rows that were dropped without being asked to.
    """
    if causes == {REFUSED} and not kept:
        return f"the chat template is the reason: {ADVICE[REFUSED]}"
    advice = [line for cause, line in ADVICE.items() if cause in causes]
    if causes - set(ADVICE):
        advice.append("mend the rows")
    if kept and not causes & set(FATAL):
        advice.append(f"raise `data.max_dropped_share` above {share:.3g} to go on without these rows")
    return "What to do: " + ", or ".join(dict.fromkeys(advice))
