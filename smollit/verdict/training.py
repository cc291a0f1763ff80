"""Rules that hold for every run: what it learned, its learning rate, its gradients, and its data."""

import statistics
from collections.abc import Iterator

from smollit.verdict.curves import FLAT, LN_2, Curves, Finding, ends

SPIKE = 10.0  # gradient norm over its median
OVERFIT = 0.01  # relative rise of the validation loss above its best
TRUNCATED = 0.1  # fraction of the training rows


def learned(curves: Curves) -> Iterator[Finding]:
    """The loss of the validation split, or without one of training, against its first value.

    In DPO the first value is ln 2 where the settings say that the policy starts as its reference. Of training losses
    the first and the last quarter are compared, with their noise.
    """
    if curves.stays_at_ln_2:
        return  # at_ln_2 speaks
    val, train = curves.points("val/loss"), curves.points("train/loss")
    if val and 0 not in val and curves.starts_at_ln_2:
        val = {0: LN_2} | val
    name, points = ("val/loss", val) if len(val) > 1 else ("train/loss", train)
    if len(points) < 2:
        yield Finding("learned", None, "too few points to say whether the run learned", "log or validate more often")
        return
    first, last, size, error = ends(name, points)
    noise = 2 * error
    at_first, at_last = ("at", "at") if size == 1 else (f"over the {size} logged steps from", f"over the {size} until")
    numbers = f"`{name}` {first:.4f} {at_first} step {min(points)}, {last:.4f} {at_last} step {max(points)}"
    if last < first - max(FLAT if curves.is_dpo else 0.005 * abs(first), noise):
        yield Finding("learned", True, f"the run learned: {numbers}")
    elif last > first + max(0.01 * abs(first), noise):
        yield Finding("learned", False, f"the loss rose: {numbers}", "lower `model.learning_rate`")
    else:
        within = f", and its noise is {noise:.4f}" if noise else ""
        advice = "raise `model.learning_rate`, or train longer"
        yield Finding("learned", False, f"the loss has not moved: {numbers}{within}", advice)


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
    trained = ends("train/loss", train)
    if val[last] > val[best] * (1 + OVERFIT) and trained.last < trained.first:
        text = (
            f"overfitting: `val/loss` was best at step {best}, {val[best]:.4f}, and is {val[last]:.4f} at step {last}"
        )
        advice = "use `--ckpt_path best` with `trainer.keep_best: val/loss`, or fewer epochs"
        yield Finding("overfitting", False, text, advice)


def truncated(curves: Curves) -> Iterator[Finding]:
    """Many rows end before their last token: the model learns not to end its responses."""
    if curves.truncated is not None and curves.truncated > TRUNCATED:
        advice = "raise `data.max_length`, or set `data.truncate: drop`"
        yield Finding("truncated", None, f"{curves.truncated:.1%} of the training rows are truncated", advice)
