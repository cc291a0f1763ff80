"""The settings of another tool -> a config of smollit, and what became of each of them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from smollit.commands.imports.axolotl import AXOLOTL
from smollit.commands.imports.common import why_not
from smollit.commands.imports.llama_factory import LLAMA_FACTORY
from smollit.commands.imports.mapping import Given, Kind, Line, Method, Nearest, Settings, Tool
from smollit.commands.imports.sets import OF_DATA, data_sets
from smollit.commands.imports.trl import TRL
from smollit.commands.imports.trl_losses import reads
from smollit.losses.base import CompletionLoss, PreferenceLoss
from smollit.losses.settings import LOSS

TOOLS = (AXOLOTL, LLAMA_FACTORY, TRL)
OPTIMIZER = "torch.optim.AdamW"
NEEDED = {
    "model.model_name": "name the model that training starts from",
    "data.dataset": "name the data set to train on",
}


class Imported(NamedTuple):
    """A config of smollit, nested as in YAML, and a line for each setting.

    Args:
        tool: Name of the other tool.
        config: The config.
        lines: What became of each setting.
        template: The text of a chat template, which `data.chat_template` takes as a file.
    """

    tool: str
    config: dict[str, Any]
    lines: list[Line]
    template: str | None


def imported(given: Given, folder: Path) -> Imported:
    """Convert the settings of another tool.

    Args:
        given: The settings.
        folder: The folder of their file.

    Raises:
        ValueError: If they are of no tool that is known, ask for a method that smollit does not have, or for a run
            without an end.
    """
    tool = tool_of(given)
    given = {name: value for name, value in given.items() if value is not None or name == "max_length"}
    defaults = {name: value for name, value in tool.defaults(given).items() if name not in given}
    everything = {**defaults, **given}
    of_sets, lines = data_sets(everything, folder)
    template = next((value for name, value in given.items() if is_template(name, value)), None)
    own: Settings = {}
    lines = [
        *_lines(tool, given, everything, "mapped", own),
        *lines,
        *_lines(tool, defaults, everything, "default of theirs", own),
    ]
    settings = of_sets | own
    family = PreferenceLoss if tool.method(given) == "DPO" else CompletionLoss
    for name in settings.get("model.loss.losses", [settings["model.loss"]] if "model.loss" in settings else []):
        LOSS.find(name, (family,))  # a name that smollit lacks is refused: another loss would be trained
    if not settings.keys() & {"trainer.max_epochs", "trainer.max_steps"}:
        raise ValueError("a run without an end is not written: give a number of epochs above 0, or `max_steps`")
    lines += [Line("not in the file", name, why) for name, why in NEEDED.items() if name not in settings]
    return Imported(tool.name, nested(settings, tool.method(given)), lines, template)


def tool_of(given: Given) -> Tool:
    """The tool whose settings these are.

    Raises:
        ValueError: If they are of none.
    """
    found = max(TOOLS, key=lambda tool: len(tool.keys & given.keys()))
    if found.keys & given.keys():
        return found
    if {"output_dir", "per_device_train_batch_size"} & given.keys():  # of a TrainingArguments JSON
        return TRL
    raise ValueError(
        f"expected the settings of {', '.join(tool.name for tool in TOOLS)} or a TrainingArguments JSON, got"
        f" {', '.join(list(given)[:5]) or 'an empty file'}"
    )


def is_template(name: str, value: Any) -> bool:
    """Whether a setting is the text of a chat template, not its name or path."""
    return name in ("chat_template", "chat_template_jinja") and isinstance(value, str) and "{" in value


def _lines(tool: Tool, given: Given, everything: Given, kind: Kind, settings: Settings) -> Iterator[Line]:
    """Convert each setting into `settings`, and say what became of it."""
    for name, value in given.items():
        if name in OF_DATA or is_template(name, value):
            continue
        shown = f"{name}: {value}"
        try:
            found = _converted(tool, name, value, everything)
        except ValueError as error:
            if kind == "mapped":
                yield Line("no counterpart", shown, str(error))
            continue
        except Nearest as near:
            settings |= near.settings
            yield Line("no counterpart", shown, str(near))
            continue
        if kind != "mapped" and found and found.keys() <= settings.keys():
            continue  # given under another name, such as an older one
        settings |= found
        said = ", ".join(f"{key}: {new}" for key, new in found.items())
        yield Line(kind, shown, said or "what smollit does without it")


def _converted(tool: Tool, name: str, value: Any, everything: Given) -> Settings:
    """What a setting becomes; a ValueError is the reason why it has no counterpart."""
    convert = tool.table.get(name)
    if convert is None:
        raise ValueError(why_not(name, tool.reasons))
    try:
        return convert(value, everything)
    except (TypeError, AttributeError, KeyError, ArithmeticError) as error:
        raise ValueError(f"a value of this kind is not known: {type(value).__name__}") from error


def nested(settings: Settings, method: Method) -> dict[str, Any]:
    """Settings by the names that a user types, as YAML has them: with class_path and init_args."""
    is_dpo = method == "DPO"
    kind, data = ("DPOModule", "PreferenceDataModule") if is_dpo else ("SFTModule", "ChatDataModule")
    config: dict[str, Any] = {
        "model": {"class_path": f"smollit.modules.{kind}", "init_args": {}},
        "data": {"class_path": f"smollit.data.{data}", "init_args": {}},
        "trainer": {},
    }
    below = {name: value for name, value in settings.items() if name.count(".") > 1}
    for name, value in settings.items():
        section, _, rest = name.partition(".")
        if not rest:
            config[name] = value
        elif name not in below:
            target = config[section] if section == "trainer" else config[section]["init_args"]
            target[rest] = value
    arguments = config["model"]["init_args"]
    for name, value in below.items():  # arguments of a loss, an optimizer, an adapter
        _, part, argument = name.split(".", 2)
        default = {"optimizer": OPTIMIZER, "loss": "DPO" if is_dpo else "NLL", "adapter": "LoRA", "schedule": "Linear"}
        now = arguments.get(part, default[part])
        if not isinstance(now, dict):
            now = arguments[part] = {"class_path": now, "init_args": {}}
        now["init_args"][argument] = value
    if isinstance(optimizer := arguments.get("optimizer"), dict):
        optimizer["init_args"].setdefault("weight_decay", 0.0)  # theirs; torch's is 0.01
    if isinstance(loss := arguments.get("loss"), dict) and loss["class_path"] == "Sum":
        loss["init_args"] = spread(loss["init_args"])
    return {name: part for name, part in config.items() if part != {}}


def spread(arguments: Settings) -> Settings:
    """The arguments of a sum of TRL's losses, with each argument in the losses that read it there."""
    of_sum = ("losses", "weights", "nll_weight")
    own = {name: value for name, value in arguments.items() if name in (*of_sum, "beta")}
    given = {name: value for name, value in arguments.items() if name not in of_sum}
    parts = [(name, {key: value for key, value in given.items() if reads(name, key)}) for name in arguments["losses"]]
    return own | {"losses": [{"class_path": name, "init_args": mine} for name, mine in parts]}


def read_config(path: Path) -> dict[str, Any]:
    """The settings in a YAML or JSON file.

    Raises:
        ValueError: If it can't be read, or holds no settings.
    """
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is neither YAML nor JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected settings, got a {type(found).__name__}")
    return {name: _number(value) for name, value in found.items()}


def _number(value: Any) -> Any:
    """A value with the numbers in it that PyYAML reads as a text, such as 1e-5, which has no dot."""
    if isinstance(value, dict):
        return {name: _number(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_number(each) for each in value]
    try:
        return float(value) if isinstance(value, str) and "e-" in value.lower() else value
    except ValueError:
        return value
