"""One contender in this process, for compare_trl.py: python -m compare.contender NAME PLAN [--profile].

Each imports only its own tool: the other's libraries would count into its memory.
"""

import json
import sys
from pathlib import Path
from typing import Any

from compare.record import Plan, load_plan

MARK = "RESULT "  # the line that counts


def run_contender(contender: str, plan: Plan, profiled: bool = False) -> dict[str, Any]:
    """The results of the contender."""
    if contender == "floor":
        from compare import floor

        return floor.run(plan)
    if contender.startswith("trl"):
        from compare import trl_side

        return trl_side.run(plan, tuned=contender == "trl-tuned")
    from compare import smollit_side

    return smollit_side.run(plan, tuned=contender == "smollit-tuned", profiled=profiled)


if __name__ == "__main__":
    name, file, *profile = sys.argv[1:]
    print(MARK + json.dumps(run_contender(name, load_plan(Path(file)), bool(profile))))
