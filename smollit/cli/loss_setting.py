"""LossParser: `model.loss`, `schedule`, `adapter` and `optimizer` by short name, with the defaults of what is named."""

import logging
import re
from inspect import Parameter, signature
from pydoc import ErrorDuringImport, locate
from typing import Any

import torch
from jsonargparse import Namespace
from torch.optim import Optimizer

from smollit.choices import Choice
from smollit.cli.logger_setting import LoggerParser
from smollit.losses import CompletionLoss, PreferenceLoss
from smollit.losses.settings import FAMILIES, LOSS, MOVED, Loss, moved_settings
from smollit.models.adapters import ADAPTERS
from smollit.modules import DPOModule, FineTuningModule, SFTModule
from smollit.schedules import SCHEDULE

log = logging.getLogger(__name__)
MOVED_SENTENCE = re.compile(
    r"^(?P<indent> *)(?P<text>`model\.\w+`[^\n]* moved into `model\.loss`.*?On the command line: [^\n]*)", re.S | re.M
)
CHOICES = {"loss": LOSS, "schedule": SCHEDULE, "adapter": ADAPTERS}
UNKNOWN_NAME = re.compile(r"`model\.(?:loss|schedule|adapter)` is [^\n]*")


class LossParser(LoggerParser):
    """LightningArgumentParser that knows how the loss, schedule, adapter and optimizer of a module are written.

    jsonargparse parses the arguments of a class with a parser of the same type as the whole command line's. It calls
    `parse_object` with those of each configuration file, and with each word of the command line.
    """

    has_choices = False
    family: tuple[type[Loss], ...] = FAMILIES

    def add_class_arguments(self, theclass: type, *args: Any, **options: Any) -> list[str]:
        """Add the arguments of a class, as jsonargparse does."""
        self.has_choices = isinstance(theclass, type) and issubclass(theclass, FineTuningModule)
        is_dpo = self.has_choices and issubclass(theclass, DPOModule)
        is_sft = self.has_choices and issubclass(theclass, SFTModule)
        self.family = (PreferenceLoss,) if is_dpo else (CompletionLoss,) if is_sft else FAMILIES
        if isinstance(theclass, type) and issubclass(theclass, Optimizer):
            # It gets its first argument, `params`, later. Where jsonargparse compares two classes, it does not skip it,
            # and refuses those of bitsandbytes and transformers, whose `params` has no type.
            options["skip"] = {*options.get("skip", ()), 1}
        return super().add_class_arguments(theclass, *args, **options)

    def parse_object(
        self, obj: Namespace | dict[str, Any], namespace: Namespace | None = None, *args: Any, **options: Any
    ) -> Namespace:
        """Parse the arguments of a class, after those that jsonargparse has parsed before, `namespace`."""
        if self.has_choices:
            obj = Namespace(obj)
            if self.family == (PreferenceLoss,):
                self._refuse_moved(obj, namespace)
            for name, choice in CHOICES.items():
                families = self.family if choice is LOSS else None
                if name in obj:
                    obj[name] = self._full(choice, obj[name], namespace.get(name) if namespace else None, families)
            if "optimizer" in obj:
                before = _plain(namespace.get("optimizer")) if namespace else None
                obj["optimizer"] = with_own_defaults(_of_torch(_plain(obj["optimizer"])), before)
        return super().parse_object(obj, namespace, *args, **options)

    def _refuse_moved(self, given: Namespace, before: Namespace | None) -> None:
        moved = {key: given[key] for key in MOVED if key in given and key not in self.get_defaults()}
        if moved:
            loss = given.get("loss") or (before.get("loss") if before else None)
            name = loss.get("class_path") if isinstance(loss, Namespace) else loss
            self.error(moved_settings(moved | ({"loss": name} if isinstance(name, str) else {})))

    def _full(self, choice: Choice, given: Any, before: Any, families: tuple[type, ...] | None) -> Any:
        try:
            settings, dropped = choice.named(_plain(given), _plain(before), families)
        except ValueError as error:
            self.error(str(error), error)
        if dropped:
            name = settings["class_path"].rpartition(".")[2]
            lost = ", ".join(f"{key} {value}" for key, value in dropped.items())
            log.info("`%s` is now %s with its own defaults; no longer used: %s", choice.setting, name, lost)
        return settings


def find_sentence(message: str) -> str | None:
    """Our sentence about such a setting inside an error of jsonargparse, which indents it; None without one."""
    if moved := MOVED_SENTENCE.search(message):
        return moved["text"].replace("\n" + moved["indent"], "\n")
    unknown = UNKNOWN_NAME.search(message)
    return unknown[0] if unknown else None


def _of_torch(given: Any) -> Any:
    """The optimizer with torch's class where only its name is given: other packages have one of the same name."""
    if isinstance(given, dict) and "class_path" in given:
        return given | {"class_path": _of_torch(given["class_path"])}
    return f"torch.optim.{given}" if isinstance(given, str) and hasattr(torch.optim, given) else given


def with_own_defaults(given: Any, before: Any) -> Any:
    """The optimizer with the defaults of its own class, where jsonargparse would keep those of the class before it.

    What the user has set stays. So does the weight decay, which is 0 by default.
    """
    name = given.get("class_path") if isinstance(given, dict) else given
    old, new = _class_at(before.get("class_path") if isinstance(before, dict) else None), _class_at(name)
    if old is None or new is None or old is new:
        return given
    was, now = (signature(kind).parameters for kind in (old, new))
    kept = {"params", "weight_decay"} | before.get("init_args", {}).keys()
    own = {key: _listed(now[key].default) for key in now if key in was and key not in kept}
    own = {key: value for key, value in own.items() if value is not Parameter.empty}
    return {"class_path": name, "init_args": own | (given.get("init_args", {}) if isinstance(given, dict) else {})}


def _class_at(path: Any) -> type | None:
    try:
        found = locate(path) if isinstance(path, str) else None
    except ErrorDuringImport:  # jsonargparse says so
        return None
    return found if isinstance(found, type) else None


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _plain(value: Any) -> Any:
    return value.as_dict() if isinstance(value, Namespace) else value
