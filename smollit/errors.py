"""UsageError, and the text of other libraries' errors for smollit's own."""


class UsageError(ValueError):
    """A command line or config that no run can be built of."""


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or the name of its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
