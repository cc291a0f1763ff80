"""The command line: python -m smollit fit --config configs/sft.yaml."""

import logging
import os
import sys
from collections.abc import Sequence

from smollit import commands
from smollit.cli.cli import SmollitCLI
from smollit.cli.errors import for_the_user


def main(args: Sequence[str] | None = None) -> SmollitCLI:
    """Parse, build and run one command.

    Args:
        args: The command and its arguments, for tests and notebooks; null takes those of the process.

    Returns:
        What was built: `.model`, `.datamodule`, `.trainer`, `.config`.
    """
    words = list(sys.argv[1:] if args is None else args)
    show_logs()
    try:
        command = commands.find(words)
        cli = SmollitCLI(words[0], command, words[1:])
        cli.command.run(cli)
    except ValueError as error:
        ours = for_the_user(error)
        if ours is None or os.environ.get("SMOLLIT_TRACEBACK"):
            raise
        raise SystemExit(f"smollit: {ours}") from error
    return cli


def show_logs() -> None:
    """Show smollit's messages on stderr, from one process; from other libraries, warnings only."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    first = os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0"
    for name in ("smollit", "callbacks"):
        logging.getLogger(name).setLevel(logging.INFO if first else logging.ERROR)
