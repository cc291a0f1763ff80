"""What a drill finds: promises, how often each was tried, and how often it was kept."""

from dataclasses import dataclass, field


@dataclass
class Promise:
    """A promise, and its trials.

    Args:
        text: The promise.
        tried: Number of trials.
        broken: What was found instead, for each trial in which it was not kept.
    """

    text: str
    tried: int = 0
    broken: list[str] = field(default_factory=list)

    def hold(self, found: str | None) -> None:
        """Count a trial; `found` says what was not kept, None that it was."""
        self.tried += 1
        if found:
            self.broken.append(found)

    @property
    def kept(self) -> int:
        """Number of trials in which it was kept."""
        return self.tried - len(self.broken)


WEIGHTS, METRICS, CURVES, EXPORT, READABLE, SIGNALS, AGAIN, CLEAN = range(8)


def promises(exact: str) -> list[Promise]:
    """All promises of a drill; `exact` says how near the weights are to those of the unbroken run."""
    return [
        Promise(f"A killed run ends in the weights of the unbroken one, {exact}"),
        Promise("Its logged metrics are those of the unbroken run, each step once"),
        Promise("TensorBoard shows each step once"),
        Promise("Its exported model is that of the unbroken run"),
        Promise("After a kill, every checkpoint can be read"),
        Promise("SIGTERM and Ctrl-C end the run with 143 and 130"),
        Promise("A finished run that is started again changes no file"),
        Promise("No temporary files are left"),
    ]
