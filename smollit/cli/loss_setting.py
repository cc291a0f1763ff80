"""LossParser: `model.loss` by short name, with the defaults of the named loss; settings that moved into it."""

import logging
import re
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from smollit.losses.settings import MOVED, moved_settings, named_loss
from smollit.modules import DPOModule, FineTuningModule

log = logging.getLogger(__name__)
MOVED_SENTENCE = re.compile(
    r"^(?P<indent> *)(?P<text>`model\.\w+`[^\n]* moved into `model\.loss`.*?On the command line: [^\n]*)", re.S | re.M
)


class LossParser(LightningArgumentParser):
    """LightningArgumentParser that knows how the setting `loss` of a FineTuningModule is written.

    jsonargparse parses the arguments of a class with a parser of the same type as the whole command line's. It calls
    `parse_object` with those of each configuration file, and with each word of the command line.
    """

    has_loss = False
    is_dpo = False

    def add_class_arguments(self, theclass: type, *args: Any, **options: Any) -> list[str]:
        """Add the arguments of a class, as jsonargparse does."""
        self.has_loss = isinstance(theclass, type) and issubclass(theclass, FineTuningModule)
        self.is_dpo = isinstance(theclass, type) and issubclass(theclass, DPOModule)
        return super().add_class_arguments(theclass, *args, **options)

    def parse_object(
        self, obj: Namespace | dict[str, Any], namespace: Namespace | None = None, *args: Any, **options: Any
    ) -> Namespace:
        """Parse the arguments of a class, after those that jsonargparse has parsed before, `namespace`."""
        if self.has_loss:
            obj = Namespace(obj)
            if self.is_dpo:
                self._refuse_moved(obj)
            if "loss" in obj:
                obj.loss = self._full(obj.loss, namespace.get("loss") if namespace else None)
        return super().parse_object(obj, namespace, *args, **options)

    def _refuse_moved(self, given: Namespace) -> None:
        moved = {key: given[key] for key in MOVED if key in given and key not in self.get_defaults()}
        if moved:
            self.error(moved_settings(moved | ({"loss": given.loss} if isinstance(given.get("loss"), str) else {})))

    def _full(self, loss: Any, before: Namespace | None) -> Any:
        try:
            settings, dropped = named_loss(_plain(loss), _plain(before))
        except ValueError as error:
            self.error(str(error), error)
        if dropped:
            name = settings["class_path"].rpartition(".")[2]
            lost = ", ".join(f"{key} {value}" for key, value in dropped.items())
            log.info("`model.loss` is now %s with its own defaults; no longer used: %s", name, lost)
        return settings


def find_moved(message: str) -> str | None:
    """The sentence for settings of version 0.1 inside an error of jsonargparse, which indents it; None without one."""
    found = MOVED_SENTENCE.search(message)
    return found["text"].replace("\n" + found["indent"], "\n") if found else None


def _plain(value: Any) -> Any:
    return value.as_dict() if isinstance(value, Namespace) else value
