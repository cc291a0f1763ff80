"""`data.select`: the best fraction of the examples by a score; docs/select.md says what each is, and its paper."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from smollit.data.encoding.counts import column
from smollit.data.encoding.select import LoadedPart

Numbers = NDArray[np.float64]
SelectBy = Literal["off", "score_gap", "length_controlled_gap", "reference_margin", "response_perplexity", "ifd"]


def score_gap(part: LoadedPart) -> Numbers:
    """Score of the chosen minus score of the rejected response, [N]; NaN without scores."""
    return column(part.examples, "score_gap").astype(np.float64)


def length_controlled_gap(part: LoadedPart) -> Numbers:
    """The score gap minus what a least-squares line over the difference of lengths predicts, [N].

    The line is that of the part's own pairs, so that what is left does not go with length.
    """
    gaps = score_gap(part)
    chosen, both = column(part.examples, "chosen_tokens"), column(part.examples, "loss_tokens")
    line = np.stack([np.ones(len(gaps)), 2 * chosen - both], axis=1)  # tokens of chosen minus rejected
    known = ~np.isnan(gaps)
    return gaps - line @ np.linalg.lstsq(line[known], gaps[known])[0]


def reference_margin(part: LoadedPart, logps: NDArray[Any]) -> Numbers:
    """log p of the chosen minus log p of the rejected response under the reference, per token, [N] of [N, 2]."""
    chosen = column(part.examples, "chosen_tokens")
    return logps[:, 0] / chosen - logps[:, 1] / (column(part.examples, "loss_tokens") - chosen)


def response_perplexity(part: LoadedPart, logps: NDArray[Any]) -> Numbers:
    """Minus the perplexity of the chosen response under the reference, [N] of [N, 2]: the lowest one is best."""
    return -np.exp(-logps[:, 0] / column(part.examples, "chosen_tokens"))


def ifd(part: LoadedPart, logps: NDArray[Any]) -> Numbers:
    """Instruction-following difficulty of chats, [N]: log p of the responses after their prompts / log p of them alone.

    https://arxiv.org/abs/2308.12032: both means are over the same tokens. The highest one below 1 is best.
    From 1 on, the prompt does not help with the response, and the score is a NaN.

    Args:
        part: The chats.
        logps: Sums of log p over the loss tokens, after the prompts and alone, [N, 2].
    """
    found = logps[:, 0].astype(np.float64) / logps[:, 1]
    return np.where(found < 1, found, np.nan)


BY_DATA: dict[SelectBy, Callable[[LoadedPart], Numbers]] = {
    "score_gap": score_gap,
    "length_controlled_gap": length_controlled_gap,
}
BY_MODEL: dict[SelectBy, Callable[[LoadedPart, NDArray[Any]], Numbers]] = {
    "reference_margin": reference_margin,
    "response_perplexity": response_perplexity,
    "ifd": ifd,
}
OF_CHATS: tuple[SelectBy, ...] = ("ifd",)  # the others are of pairs


def check_select(by: SelectBy, share: float | None, *, streaming: bool) -> None:
    """Refuse a selection without its share, a share without a selection, and a selection from a stream.

    Raises:
        ValueError: Names the settings.
    """
    if by == "off":
        if share is not None:
            raise ValueError("`data.select_share` has no effect without `data.select`: set it to a score")
    elif share is None or not 0 < share <= 1:
        raise ValueError(f"`data.select: {by}` needs a `data.select_share` above 0 and at most 1, got {share}")
    elif streaming:
        raise ValueError("`data.select` compares all rows, and `data.streaming` has not all")


def keep_best(parts: Sequence[LoadedPart], by: SelectBy, share: float | None) -> list[LoadedPart]:
    """Of each part the best share by a score of the data; by a score of the model, the parts as they are.

    Raises:
        ValueError: If a part has no scores, or the score is not one of such rows.
    """
    has_pairs = any("score_gap" in part.examples.column_names for part in parts)
    if by != "off" and has_pairs == (by in OF_CHATS):
        scored, rows = ("chats", "pairs") if has_pairs else ("pairs", "chats")
        raise ValueError(f"`data.select: {by}` is a score of {scored}, and these rows are {rows}")
    if by not in BY_DATA:
        return list(parts)
    return [_without_rest(part, BY_DATA[by](part), by, share) for part in parts]


def keep_best_by_model(
    parts: Sequence[LoadedPart], logps: NDArray[Any], by: SelectBy, share: float | None
) -> tuple[list[LoadedPart], NDArray[np.bool_]]:
    """Of each part the best share by a score of the model, and which examples of all parts these are.

    Args:
        parts: The parts.
        logps: Two log-probabilities of each of their examples, [N, 2]: of the chosen and of the rejected response of a
            pair; of the responses of a chat after their prompts and alone.
        by: The score.
        share: The fraction to keep.
    """
    of_part = np.split(logps, np.cumsum([len(part.examples) for part in parts])[:-1])
    scores = [BY_MODEL[by](part, values) for part, values in zip(parts, of_part, strict=True)]
    kept = [is_best(found, share) for found in scores]
    left = [part.without(~best, f"`data.select: {by}`") for part, best in zip(parts, kept, strict=True)]
    return left, np.concatenate(kept)


def is_best(scores: Numbers, share: float | None) -> NDArray[np.bool_]:
    """Which examples are the best fraction of all, [N]: of equal scores the first; never one without a score, a NaN."""
    assert share is not None
    best = np.argsort(-scores, kind="stable")[: round(share * len(scores)) or 1]  # NaN stands last
    found = np.zeros(len(scores), dtype=bool)
    found[best] = True
    return found & ~np.isnan(scores)


def _without_rest(part: LoadedPart, scores: Numbers, by: SelectBy, share: float | None) -> LoadedPart:
    kept = is_best(scores, share)
    if len(kept) and not kept.any():
        raise ValueError(f"`data.select: {by}` needs score_chosen and score_rejected, which no row of a part has")
    return part.without(~kept, f"`data.select: {by}`")
