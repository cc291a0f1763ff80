"""LostSteps: optimizer steps that change no weight are counted and logged, and end the run when there are too many."""

import logging
from dataclasses import asdict, dataclass
from typing import Any

log = logging.getLogger(__name__)
MOST_SKIPPED = 5  # in a row
MOST_OVERFLOWS = 32  # in a row: fp16's scaler halves its scale with each, from 65,536


@dataclass(frozen=True)
class BadStep:
    """An optimizer step whose loss or gradient norm is not finite.

    Args:
        step: Its number, from 1.
        loss: Its loss, over all micro-batches and ranks.
        gradient_norm: The norm of its gradient.
        learning_rate: Its learning rate.
        rows: Row numbers of this rank, as text.
    """

    step: int
    loss: float
    gradient_norm: float
    learning_rate: float
    rows: str

    def __str__(self) -> str:
        return (
            f"step {self.step}: loss {self.loss:g}, gradient norm {self.gradient_norm:g}, at learning rate"
            f" {self.learning_rate:.3g}, on rows {self.rows}"
        )


class NonFiniteError(ValueError):
    """The loss, the gradient norm, or weights that were to be saved became infinite or NaN."""


class NonFiniteStepError(NonFiniteError):
    """A step that is not finite ends the run, on all ranks; the weights are those of the last good step.

    Args:
        bad: The step.
        advice: The rest of the sentence.
    """

    def __init__(self, bad: BadStep, advice: str) -> None:
        super().__init__(f"{bad}{advice}")
        self.bad = bad


class NothingTrainedError(ValueError):
    """No optimizer step of the run changed a weight."""


@dataclass
class LostSteps:
    """Numbers of optimizer steps without an effect, since the run began.

    Args:
        empty: Without loss tokens or pairs.
        skipped: Not finite, with `model.non_finite: skip`.
        overflowed: Skipped by fp16's gradient scaler, while it searches for its scale.
        in_a_row: Skipped or overflowed, up to now.
    """

    empty: int = 0
    skipped: int = 0
    overflowed: int = 0
    in_a_row: int = 0

    def note_finite(self, count: float) -> None:
        """A step whose loss and gradients are finite, over so many loss tokens or pairs."""
        self.in_a_row = 0
        self.empty += count == 0

    def note_skipped(self, bad: BadStep) -> None:
        """A step that is skipped since it is not finite.

        Raises:
            NonFiniteStepError: If it is one too many in a row.
        """
        self.skipped += 1
        self._note_in_a_row(bad, MOST_SKIPPED, "lower `model.learning_rate`, or check these rows")
        log.warning("%s: the step is skipped, as `model.non_finite` says; %s in a row", bad, self.in_a_row)

    def note_overflow(self, bad: BadStep) -> None:
        """A step that fp16's gradient scaler skips.

        Raises:
            NonFiniteStepError: If it is one too many in a row.
        """
        self.overflowed += 1
        self._note_in_a_row(bad, MOST_OVERFLOWS, "lower `model.learning_rate`, or use bf16-mixed")
        log.info("%s: fp16's gradient scaler skips the step and halves its scale", bad)

    def _note_in_a_row(self, bad: BadStep, most: int, advice: str) -> None:
        self.in_a_row += 1
        if self.in_a_row >= most:
            raise NonFiniteStepError(bad, f", and so were the {most - 1} steps before it: {advice}")

    def refuse_nothing_trained(self, num_steps: int) -> None:
        """Refuse a run that ends without a step that changed a weight.

        Raises:
            NothingTrainedError: With the causes.
        """
        causes = {
            "had no loss token or pair: all of their rows were dropped, or have a weight of 0": self.empty,
            "were not finite, and skipped": self.skipped,
            "overflowed in fp16, and were skipped: use bf16-mixed, or train longer": self.overflowed,
        }
        if num_steps and sum(causes.values()) >= num_steps:
            found = "; ".join(f"{count} {cause}" for cause, count in causes.items() if count)
            raise NothingTrainedError(f"nothing was trained: of {num_steps} optimizer steps, {found}")

    def state(self) -> dict[str, Any]:
        """As plain numbers, for checkpoints."""
        return asdict(self)
