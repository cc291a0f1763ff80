"""What the curves of a run say, in plain words: one rule per function, each with its evidence and its source.

A rule reads the rows of metrics.csv, and speaks only where the numbers are clear.
"""

from smollit.verdict import preferences, training
from smollit.verdict.curves import Curves, Finding, curve

__all__ = ["Curves", "Finding", "curve", "verdict"]

RULES = (
    training.learned,
    preferences.at_ln_2,
    training.warm_up,
    training.unstable,
    training.overfitting,
    preferences.over_optimized,
    preferences.chosen_falls,
    preferences.length_bias,
    preferences.label_noise,
    training.truncated,
    preferences.certain,
)


def verdict(curves: Curves) -> list[Finding]:
    """All findings, problems first."""
    found = [finding for rule in RULES for finding in rule(curves)]
    return sorted(found, key=lambda finding: {False: 0, True: 1, None: 2}[finding.good])
