"""`python -m smollit ARGUMENTS` up to its first optimizer step, for growth.py: python -m compare.first_step JOB.

Prints the clock's time (seconds since 1970) at the end of each part: import, arguments, data, model, step.
"""

import time
from typing import Any

from compare.child import job_of_this_process, reply


def run(job: dict[str, Any]) -> dict[str, float]:
    """What `smollit.__main__` does, with `compare.stamp.Stamp` among the callbacks."""
    from smollit.main import main

    imported = time.time()
    main([*job["arguments"], "--trainer.callbacks+=compare.stamp.Stamp"])
    from compare.stamp import ENDS

    return {"import": imported} | ENDS


if __name__ == "__main__":
    reply(run(job_of_this_process()))
