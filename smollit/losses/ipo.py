"""IPO: the squared difference between the margin and a bounded target."""

from dataclasses import dataclass

from torch import Tensor

from smollit.functional.pairs import Pairs
from smollit.losses.base import PreferenceLoss


@dataclass(frozen=True, kw_only=True)
class IPO(PreferenceLoss):
    """(h - 1 / (2 beta))^2, where h is the log-ratio of the chosen minus that of the rejected response.

    Eq. 17 of https://arxiv.org/abs/2310.12036. Each log-ratio is a mean over the response's tokens here, so that the
    target does not depend on the lengths of the responses.
    """

    def formula(self, pairs: Pairs) -> Tensor:
        """(h - 1 / (2 beta))^2, [P]."""
        chosen, rejected = (pairs.log_ratios / pairs.num_tokens).unbind(dim=1)
        return (chosen - rejected - 1 / (2 * self.beta)).square()
