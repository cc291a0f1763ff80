"""The settings of another tool -> a config of smollit, and what became of each of them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from smollit.commands.imports.mapping import Settings, Tool
from smollit.commands.imports.tools import TOOLS, TRL

Kind = Literal["mapped", "no counterpart", "default of theirs"]
PREFERENCES = (
    "beta",
    "loss_type",
    "rl",
    "pref_beta",
    "pref_loss",
    "ref_model_name_or_path",
    "precompute_ref_log_probs",
)
OPTIMIZER = "torch.optim.AdamW"


class Line(NamedTuple):
    """One setting of the other tool.

    Args:
        kind: What became of it.
        name: Its name and value.
        result: The settings that it became, or why there are none.
    """

    kind: Kind
    name: str
    result: str


class Imported(NamedTuple):
    """A config of smollit, nested as in YAML, and a line for each setting."""

    tool: str
    config: dict[str, Any]
    lines: list[Line]


def imported(given: Mapping[str, Any]) -> Imported:
    """Convert the settings of another tool.

    Raises:
        ValueError: If they are of no tool that is known.
    """
    tool = tool_of(given)
    is_dpo = given.get("stage") == "dpo" or any(given.get(name) for name in PREFERENCES)
    defaults = {name: value for name, value in tool.defaults.items() if name not in given}
    if tool is TRL and is_dpo and "learning_rate" in defaults:
        defaults["learning_rate"] = 1e-6
    if tool is TRL and not is_dpo and not {"assistant_only_loss", "completion_only_loss"} & given.keys():
        defaults["assistant_only_loss"] = False
    settings: Settings = {}
    lines = [
        *_lines(tool, datasets_of(given), "mapped", settings),
        *_lines(tool, defaults, "default of theirs", settings),
    ]
    return Imported(tool.name, nested(settings, is_dpo=is_dpo), lines)


def tool_of(given: Mapping[str, Any]) -> Tool:
    """The tool whose settings these are.

    Raises:
        ValueError: If they are of none.
    """
    found = max(TOOLS, key=lambda tool: len(tool.keys & given.keys()))
    if found.keys & given.keys() or {"output_dir", "per_device_train_batch_size"} & given.keys():
        return found if found.keys & given.keys() else TRL
    raise ValueError(
        f"expected the settings of {', '.join(tool.name for tool in TOOLS)} or a TrainingArguments JSON, got"
        f" {', '.join(list(given)[:5]) or 'an empty file'}"
    )


def datasets_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, with axolotl's list of data sets as one name where there is one."""
    sets = given.get("datasets")
    if not isinstance(sets, list) or len(sets) != 1 or not isinstance(sets[0], dict):
        return dict(given)
    return {name: value for name, value in given.items() if name != "datasets"} | {"dataset": sets[0].get("path")}


def _lines(tool: Tool, given: Mapping[str, Any], kind: Kind, settings: Settings) -> Iterator[Line]:
    """Convert each setting into `settings`, and say what became of it."""
    table = {"dataset": lambda value: {"data.dataset": value}, **tool.table}
    for name, value in given.items():
        shown, convert = f"{name}: {value}", table.get(name)
        if name in ("rl", "stage") or value is None:
            continue
        if name in ("adam_beta1", "adam_beta2"):
            betas = settings.setdefault("model.optimizer.betas", [0.9, 0.999])
            betas[name == "adam_beta2"] = value
            yield Line(kind, shown, f"model.optimizer.betas: {betas}")
        elif convert is None:
            yield Line("no counterpart", shown, tool.reasons.get(name, "look at `python -m smollit fit --help`"))
        else:
            try:
                found = convert(value)
            except (ValueError, TypeError) as error:
                yield Line("no counterpart", shown, str(error))
                continue
            settings |= found
            said = ", ".join(f"{key}: {new}" for key, new in found.items())
            yield Line(kind, shown, said or "what smollit does without it")


def nested(settings: Settings, *, is_dpo: bool) -> dict[str, Any]:
    """Settings by the names that a user types, as YAML has them: with class_path and init_args."""
    kind, data = ("DPOModule", "UltraFeedbackDataModule") if is_dpo else ("SFTModule", "UltraChatDataModule")
    model: dict[str, Any] = {"class_path": f"smollit.modules.{kind}", "init_args": {}}
    config: dict[str, Any] = {
        "model": model,
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
    for name, value in below.items():  # arguments of a loss, an optimizer, an adapter
        section, part, argument = name.split(".", 2)
        arguments = config[section]["init_args"]
        default = {"optimizer": OPTIMIZER, "loss": "DPO" if is_dpo else "NLL", "adapter": "LoRA"}[part]
        now = arguments.get(part, default)
        if not isinstance(now, dict):
            now = arguments[part] = {"class_path": now, "init_args": {}}
        now["init_args"][argument] = value
    if "adapter" in model["init_args"] and not settings.get("model.adapter"):
        del model["init_args"]["adapter"]  # ranks without a switch that turns the adapter on
    return {name: part for name, part in config.items() if part != {}}


def read_config(path: Path) -> dict[str, Any]:
    """The settings in a YAML or JSON file.

    Raises:
        ValueError: If it can't be read, or holds no settings.
    """
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is neither YAML nor JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected settings, got a {type(found).__name__}")
    # PyYAML reads 1e-5 as a text, as it has no dot.
    return {name: _number(value) for name, value in found.items()}


def _number(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, str) and "e-" in value.lower() else value
    except ValueError:
        return value
