"""`python -m smollit fit --config configs/sft.yaml`."""

import io
import sys

from smollit import __version__
from smollit.commands import overview


def run() -> None:
    """Handle at once what needs no torch; hand all else to main()."""
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):  # what the terminal's encoding can't show or read becomes a `?`
            stream.reconfigure(errors="replace")
    words = sys.argv[1:]
    if words in ([], ["-h"], ["--help"]):
        print(overview(), end="")
    elif words == ["--version"]:
        print(f"smollit {__version__}")
    else:
        from smollit.main import main

        main()


if __name__ == "__main__":
    run()
