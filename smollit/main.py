"""The command line: python -m smollit fit --config configs/sft.yaml."""

import logging
import os
import select
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from smollit import commands
from smollit.cli.folders import folder_command
from smollit.commands.command import FolderCommand

if TYPE_CHECKING:
    from smollit.cli.cli import SmollitCLI


def main(args: Sequence[str] | None = None) -> "SmollitCLI | FolderCommand":
    """Parse, build and run one command.

    Args:
        args: The command and its arguments, for tests and notebooks; null takes those of the process.

    Returns:
        What was built: `.model`, `.datamodule`, `.trainer`, `.config`; of a command on folders, the command.

    Raises:
        SystemExit: With code 2 if the command line or config is wrong, with a sentence (code 1) for other errors that
            are the user's to fix. Bugs are raised as they are; so is all else where SMOLLIT_TRACEBACK is set.
    """
    words = list(sys.argv[1:] if args is None else args)
    show_logs()
    try:
        command = commands.find(words)
        if issubclass(command, FolderCommand):
            on_folders = folder_command(words[0], command, words[1:])
            on_folders.run()
            return on_folders
        from smollit.cli.cli import SmollitCLI  # with Lightning, which takes seconds and commands on folders don't need
        from smollit.cli.errors import building

        show_lightning_once()
        command.run_alone(words[1:])
        with building():
            cli = SmollitCLI(words[0], command, command.words(words[1:]))
        cli.command.run(cli)
    except KeyboardInterrupt:  # before a trainer listens
        raise SystemExit(130) from None
    except Exception as error:
        if isinstance(error, BrokenPipeError) and stdout_is_closed():  # `| head` has read what it wanted
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(141) from None  # 128 + SIGPIPE, as in shells
        from smollit.cli.errors import DEBUG, for_the_user

        said = for_the_user(error)
        if said is None or os.environ.get(DEBUG):
            raise
        if said.is_usage:
            print(f"smollit: {said.text}", file=sys.stderr)
            sys.exit(2)
        raise SystemExit(f"smollit: {said.text}") from error
    return cli


def stdout_is_closed() -> bool:
    """Whether who read the output is gone."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
    except (AttributeError, OSError):  # on Windows, and in a notebook
        return False
    return any(event & select.POLLERR for _, event in poll.poll(0))


def show_logs() -> None:
    """Show smollit's messages on stderr, from one process; from other libraries, warnings only."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    first = os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0"
    for name in ("smollit", "callbacks"):
        logging.getLogger(name).setLevel(logging.INFO if first else logging.ERROR)


def show_lightning_once() -> None:
    """Remove the stream handler that `import lightning` adds, beside which each message would come twice."""
    lightning = logging.getLogger("lightning")
    lightning.handlers = [handler for handler in lightning.handlers if type(handler) is not logging.StreamHandler]
