"""What the curves of a run say, in plain words: one rule per function, each with its evidence and its source.

A rule reads the rows of metrics.csv, and speaks only where the numbers are clear.
"""

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

Points = dict[int, float]  # value by step
LN_2 = math.log(2)
FLAT = 2e-3  # change of a DPO loss, in nats, below which nothing was learned
SPIKE = 10.0  # gradient norm over its median
OVERFIT = 0.01  # relative rise of the validation loss above its best
LENGTH_BIAS = 0.2  # difference of the accuracies where the chosen response is the longer one, and the shorter one
TRUNCATED = 0.1  # fraction of the training rows
FALL = 0.1  # relative fall of the chosen log-probability
# Held-out accuracy on UltraFeedback of the cards of SmolLM2-Instruct, https://huggingface.co/HuggingFaceTB.
PUBLISHED = {"135m": 0.615, "360m": 0.619, "1.7b": 0.675}


class Finding(NamedTuple):
    """One thing that the curves say.

    Args:
        rule: Name of the rule: see docs/report.md.
        good: True for what one wants, False for a problem, None for a remark.
        text: The sentence, with its numbers.
        advice: What to do; empty if nothing.
    """

    rule: str
    good: bool | None
    text: str
    advice: str = ""


def curve(rows: Iterable[Mapping[str, str]], name: str) -> Points:
    """The values of a metric by step, from the rows of metrics.csv."""
    return {int(row["step"]): float(row[name]) for row in rows if row.get(name)}


class Curves:
    """The metrics of a run by name and step.

    Args:
        rows: Rows of metrics.csv.
        num_val: Rows of the validation split, for intervals; None if unknown.
        truncated: Fraction of the training rows that are truncated; None if unknown.
        model_name: Name of the model, for published curves.
        dataset: Name of the data set, likewise.
    """

    def __init__(
        self,
        rows: Sequence[Mapping[str, str]],
        *,
        num_val: int | None = None,
        truncated: float | None = None,
        model_name: str = "",
        dataset: str = "",
    ) -> None:
        self.rows = rows
        self.num_val = num_val
        self.truncated = truncated
        self.model_name = model_name
        self.dataset = dataset

    def points(self, name: str) -> Points:
        """The values of a metric that are numbers."""
        return {step: value for step, value in curve(self.rows, name).items() if math.isfinite(value)}

    @property
    def is_dpo(self) -> bool:
        """Whether the run trained on preferences."""
        return any(row.get("train/rewards/margins") or row.get("val/rewards/margins") for row in self.rows)


def verdict(curves: Curves) -> list[Finding]:
    """All findings, problems first."""
    found = [finding for rule in RULES for finding in rule(curves)]
    return sorted(found, key=lambda finding: {False: 0, True: 1, None: 2}[finding.good])


def interval(accuracy: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a fraction of `count` trials, https://doi.org/10.1080/01621459.1927.10502953."""
    z = 1.96
    center = (accuracy + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(accuracy * (1 - accuracy) / count + z * z / (4 * count * count))
    return center - half, center + half


# ---- rules


def learned(curves: Curves) -> Iterator[Finding]:
    """The loss of the validation split, or without one of training, against its first value."""
    name = "val/loss" if len(curves.points("val/loss")) > 1 else "train/loss"
    points = curves.points(name)
    if len(points) < 2:
        yield Finding("learned", None, "too few points to say whether the run learned", "log or validate more often")
        return
    first, last = points[min(points)], points[max(points)]
    numbers = f"`{name}` {first:.4f} at step {min(points)}, {last:.4f} at step {max(points)}"
    if curves.is_dpo and abs(last - LN_2) < FLAT and abs(first - LN_2) < FLAT:
        return  # at_ln_2 speaks
    if last < first - (FLAT if curves.is_dpo else 0.005 * abs(first)):
        yield Finding("learned", True, f"the run learned: {numbers}")
    elif last > first * 1.01:
        yield Finding("learned", False, f"the loss rose: {numbers}", "lower `model.learning_rate`")
    else:
        advice = "raise `model.learning_rate`, or train longer"
        yield Finding("learned", False, f"the loss has not moved: {numbers}", advice)


def at_ln_2(curves: Curves) -> Iterator[Finding]:
    """DPO whose loss stays at ln 2: the policy equals its reference, eq. 7 of https://arxiv.org/abs/2305.18290."""
    points = curves.points("train/loss")
    if not curves.is_dpo or not points or any(abs(value - LN_2) >= FLAT for value in points.values()):
        return
    norms, rates = curves.points("train/gradient_norm"), curves.points("train/learning_rate")
    if norms and max(norms.values()) < 1e-8:
        cause, advice = "no gradient: the responses of a pair are equal", "look at the pairs: python -m smollit inspect"
    elif rates and max(rates.values()) < 1e-7:
        cause, advice = f"the learning rate is at most {max(rates.values()):.1e}", "raise `model.learning_rate`"
    else:
        cause, advice = "the policy has hardly moved", "train longer, or raise `model.learning_rate`"
    yield Finding("at-ln-2", False, f"the loss stays at ln 2 = 0.6931, where policy equals reference: {cause}", advice)


def warm_up(curves: Curves) -> Iterator[Finding]:
    """The learning rate still rises at the end."""
    rates = curves.points("train/learning_rate")
    values = [rates[step] for step in sorted(rates)]
    if len(values) > 2 and values[-1] == max(values) and values[-1] > values[-2] > values[0]:
        yield Finding("warm-up", False, "the learning rate was still rising at the last step", "shorten the warm-up")


def unstable(curves: Curves) -> Iterator[Finding]:
    """Gradient norms far above their median, which too high a learning rate makes."""
    norms = curves.points("train/gradient_norm")
    if len(norms) < 5:
        return
    usual = statistics.median(norms.values())
    step = max(norms, key=norms.__getitem__)
    if usual > 0 and norms[step] > SPIKE * usual and step > min(norms):
        text = f"the gradient norm reached {norms[step]:.3g} at step {step}, {norms[step] / usual:.0f} times its median"
        advice = "look at its rows: python -m smollit replay RUN STEP; lower `model.learning_rate`"
        yield Finding("unstable", False, text, advice)


def overfitting(curves: Curves) -> Iterator[Finding]:
    """The validation loss rises after its best value while the training loss falls."""
    val, train = curves.points("val/loss"), curves.points("train/loss")
    if len(val) < 3 or len(train) < 2:
        return
    best, last = min(val, key=val.__getitem__), max(val)
    falls = train[max(train)] < train[min(train)]
    if val[last] > val[best] * (1 + OVERFIT) and falls:
        text = (
            f"overfitting: `val/loss` was best at step {best}, {val[best]:.4f}, and is {val[last]:.4f} at step {last}"
        )
        advice = "use `--ckpt_path best` with `trainer.keep_best: val/loss`, or fewer epochs"
        yield Finding("overfitting", False, text, advice)


def over_optimized(curves: Curves) -> Iterator[Finding]:
    """The margin grows while the accuracy falls: https://arxiv.org/abs/2406.02900."""
    accuracy, margin = curves.points("val/rewards/accuracies"), curves.points("val/rewards/margins")
    if len(accuracy) < 3 or not curves.num_val:
        return
    best, last = max(accuracy, key=accuracy.__getitem__), max(accuracy)
    error = math.sqrt(0.25 / curves.num_val)
    if accuracy[last] < accuracy[best] - 2 * error and margin[last] > margin[best]:
        text = (
            f"over-optimization: since step {best} the margin grew from {margin[best]:.3f} to {margin[last]:.3f}, and"
            f" the accuracy fell from {accuracy[best]:.3f} to {accuracy[last]:.3f}"
        )
        yield Finding("over-optimized", False, text, "raise `model.loss.beta`, or stop earlier")


def chosen_falls(curves: Curves) -> Iterator[Finding]:
    """The chosen responses lose log-probability: https://arxiv.org/abs/2404.19733, sec. 3."""
    name = "val/logps/chosen" if len(curves.points("val/logps/chosen")) > 1 else "train/logps/chosen"
    points = curves.points(name)
    if len(points) < 2 or not curves.is_dpo:
        return
    first, last = points[min(points)], points[max(points)]
    if last < first - FALL * abs(first):
        text = f"the chosen responses became less likely: `{name}` fell from {first:.1f} to {last:.1f}"
        yield Finding("chosen-falls", None, text, "set `model.loss.nll_weight`, or lower `model.learning_rate`")


def length_bias(curves: Curves) -> Iterator[Finding]:
    """The policy prefers the longer response, whichever is chosen: https://arxiv.org/abs/2403.19159."""
    longer = curves.points("val/rewards/accuracies_chosen_longer")
    shorter = curves.points("val/rewards/accuracies_chosen_shorter")
    steps = longer.keys() & shorter.keys()
    high, low = (points[max(steps)] if steps else 0.5 for points in (longer, shorter))
    if high - low > max(LENGTH_BIAS, 2 * math.sqrt(1 / (curves.num_val or 1))) and low < 0.5:
        text = (
            f"length bias: the accuracy is {high:.3f} where the chosen response is the longer one, and {low:.3f} where"
            " it is the shorter one"
        )
        yield Finding("length-bias", False, text, "take a loss per token, as LNDPO or SimPO: docs/losses.md")


def truncated(curves: Curves) -> Iterator[Finding]:
    """Many rows end before their last token: the model learns not to end its responses."""
    if curves.truncated is not None and curves.truncated > TRUNCATED:
        advice = "raise `data.max_length`, or set `data.truncate: drop`"
        yield Finding("truncated", None, f"{curves.truncated:.1%} of the training rows are truncated", advice)


def certain(curves: Curves) -> Iterator[Finding]:
    """The accuracy on the validation split, with its interval, against chance and published values."""
    points = curves.points("val/rewards/accuracies")
    if not points or not curves.num_val:
        return
    accuracy = points[max(points)]
    low, high = interval(accuracy, curves.num_val)
    numbers = f"accuracy {accuracy:.3f} on {curves.num_val:,} pairs, 95 % interval {low:.3f} to {high:.3f}"
    if low <= 0.5 <= high:
        text = f"{numbers}: it can't be told from chance"
        yield Finding("certain", False, text, "validate on more pairs, or train longer")
    else:
        yield Finding("certain", high >= 0.5, numbers)
    size = next((size for size in PUBLISHED if size in curves.model_name.lower()), None)
    if size and "ultrafeedback" in curves.dataset.lower():
        known = PUBLISHED[size]
        where = "below" if high < known else "above" if low > known else "at"
        yield Finding("published", None, f"{where} the published accuracy of SmolLM2 {size} on this data, {known:.3f}")


RULES = (
    learned,
    at_ln_2,
    warm_up,
    unstable,
    overfitting,
    over_optimized,
    chosen_falls,
    length_bias,
    truncated,
    certain,
)
