"""Rules about runs on preference pairs."""

import math
from collections.abc import Iterator
from itertools import pairwise

from smollit.verdict.curves import Curves, Finding, ends

LENGTH_BIAS = 0.2  # difference of the accuracies where the chosen response is the longer one, and the shorter one
FALL = 0.1  # relative fall of the chosen log-probability
# Held-out accuracy on UltraFeedback of the cards of SmolLM2-Instruct, https://huggingface.co/HuggingFaceTB.
PUBLISHED = {"135m": 0.615, "360m": 0.619, "1.7b": 0.675}


def interval(accuracy: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a fraction of `count` trials, https://doi.org/10.1080/01621459.1927.10502953."""
    z = 1.96
    center = (accuracy + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(accuracy * (1 - accuracy) / count + z * z / (4 * count * count))
    return center - half, center + half


def at_ln_2(curves: Curves) -> Iterator[Finding]:
    """DPO whose loss stays at ln 2: the policy equals its reference, eq. 7 of https://arxiv.org/abs/2305.18290."""
    if not curves.stays_at_ln_2:
        return
    norms, rates = curves.points("train/gradient_norm"), curves.points("train/learning_rate")
    if norms and max(norms.values()) < 1e-8:
        cause, advice = "no gradient: the responses of a pair are equal", "look at the pairs: python -m smollit inspect"
    elif rates and max(rates.values()) < 1e-7:
        cause, advice = f"the learning rate is at most {max(rates.values()):.1e}", "raise `model.learning_rate`"
    else:
        cause, advice = "the policy has hardly moved", "train longer, or raise `model.learning_rate`"
    yield Finding("at-ln-2", False, f"the loss stays at ln 2 = 0.6931, where policy equals reference: {cause}", advice)


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
    first, last, _, error = ends(name, points)
    if last < first - max(FALL * abs(first), 2 * error):
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


def label_noise(curves: Curves) -> Iterator[Finding]:
    """The policy ranks fewer training pairs right than validation pairs, before it has seen either.

    In the first epoch both are new to it. If a fraction e of the training labels is swapped, an accuracy of a on pairs
    with right labels becomes a - e (2a - 1): https://arxiv.org/abs/2403.00409.
    """
    train, epochs = curves.points("train/rewards/accuracies"), curves.points("train/epoch")
    new = {step: epoch for step, epoch in epochs.items() if epoch <= 1}
    val = {step: each for step, each in curves.points("val/rewards/accuracies").items() if step in new}
    if len(val) < 2 or not curves.num_val or not curves.num_train:
        return
    last = max(val)
    first = max((step for step in val if 2 * step <= last), default=min(val))
    logged = sorted(step for step in train if step in new and first <= step <= last)
    seen = sum(train[step] * (step - before) for before, step in pairwise(logged))
    accuracy = seen / max(logged[-1] - logged[0], 1) if logged else 0.5
    count = curves.num_train * (new[last] - new[first])
    known = min(each for step, each in val.items() if step >= first)  # the policy learns on: this favors no noise
    if count > 0 and known - accuracy > 2 * math.sqrt(0.25 / count + 0.25 / curves.num_val):
        share = (known - accuracy) / (2 * known - 1)
        text = (
            f"label noise: the policy ranks {accuracy:.3f} of {count:,.0f} new training pairs right, and at least"
            f" {known:.3f} of the validation pairs, as if {min(share, 1):.0%} of the training labels were swapped"
        )
        yield Finding("label-noise", False, text, "look at the pairs: python -m smollit report RUN --rows")


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
