"""UsageError, and the text of other libraries' errors for smollit's own."""


class UsageError(ValueError):
    """A command line or config that no run can be built of."""


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or the name of its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def root_cause(error: BaseException) -> BaseException:
    """The error that an error was raised from, all the way down."""
    return error if error.__cause__ is None else root_cause(error.__cause__)
