"""Which errors are messages for the user, and which are bugs that need a traceback."""

import traceback
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def for_the_user(error: BaseException | None) -> ValueError | None:
    """The error that smollit itself raised with a message for the user, also where jsonargparse wrapped it.

    None if there is none: then the traceback is shown.
    """
    while error is not None:
        frames = traceback.extract_tb(error.__traceback__)
        raised_here = bool(frames) and Path(frames[-1].filename).is_relative_to(PACKAGE)
        if isinstance(error, ValueError) and raised_here:
            return error
        error = error.__cause__ or error.__context__
    return None
