"""SmollitParser: jsonargparse's parser with errors that fit on a screen and name the nearest setting."""

import difflib
import re
from typing import NoReturn

from smollit.cli.loss_setting import LossParser, find_sentence

UNKNOWN = re.compile(r"(?:Option|option|unrecognized arguments:|Key) '?-*([\w.]+)'?")
IS_UNKNOWN = re.compile(r"not accept|unrecognized arguments|not expected")
EXPLAINED = re.compile(r"`([\w.]+)`(: there is no such setting(?:\. Did you mean `[\w.]+`\?)?)")
GROUP = re.compile(r"Group '([\w.]+)'")
PARENT = re.compile(r'Parser key "([\w.]+)"')


class SmollitParser(LossParser):
    """LightningArgumentParser whose errors are short, and name an unknown key in full with the nearest valid one."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the error with a suggestion, and exit with 2."""
        super().error(self.explain(message), ex)

    def explain(self, message: str) -> str:
        """`model.lerning_rate`: there is no such setting, and what to write instead; other errors as they are."""
        if sentence := find_sentence(message):
            return sentence
        if explained := EXPLAINED.search(message):  # by the parser of a class inside this one, which lacks the prefix
            parents = PARENT.findall(message[: explained.start()])
            prefix = "".join(f"{parent}." for parent in parents)
            return f"`{prefix}{explained[1]}`{explained[2].replace('mean `', f'mean `{prefix}')}"
        found = UNKNOWN.search(message) if IS_UNKNOWN.search(message) else None
        if found is None:
            return message
        key = ".".join([*GROUP.findall(message), found[1]])
        return f"`{key}`: there is no such setting{self.suggestion(key)}"

    def suggestion(self, key: str) -> str:
        """`. Did you mean ...?`, or nothing if no name is near."""
        near = difflib.get_close_matches(key, sorted(self.get_defaults().keys()), n=1, cutoff=0.7)
        return f". Did you mean `{near[0]}`?" if near else ""
