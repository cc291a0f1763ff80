"""Data sets as the other tools list them -> `data.dataset`, with one setting for each of their keys."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from smollit.commands.imports.mapping import Given, Line, Settings, named
from smollit.paths import read_mapping

# Their keys of a data set, and what they are of a part of `data.dataset`.
KEYS = {
    "path": "dataset",
    "id": "dataset",
    "name": "subset",
    "config": "subset",
    "split": "split",
    "revision": "revision",
    "weight": "weight",
    "max_rows": "max_rows",
    "format": "format",
}
COLUMNS = {
    "field": "text",
    "text_column": "text",
    "field_messages": "messages",
    "field_instruction": "instruction",
    "field_input": "input",
    "field_output": "output",
    "field_prompt": "prompt",
    "field_completion": "completion",
    "field_history": "history",
    "field_chosen": "chosen",
    "field_rejected": "rejected",
    "field_system": "system",
    "field_tools": "tools",
}
READERS = ("json", "csv", "parquet", "text", "arrow")  # `path` of files, in datasets.load_dataset
RECOGNIZED = "formats and keys of messages are recognized from the rows: `python -m smollit inspect` shows them"
# Their names of columns in LLaMA-Factory's dataset_info.json, where they are not ours.
KNOWN = {"prompt": "instruction", "query": "input", "response": "output"}
# Texts around the columns of a row, in axolotl.
FORMATS = ("format", "no_input_format", "system_format", "prompt_format", "chosen_format", "rejected_format")
REASONS = {
    "unregistered": "its entry in dataset_info.json was not found: set `data.dataset` to its file or name",
    "type": f"{RECOGNIZED}; the model's chat template renders them",
    **{f"type.{name}": "a chat template renders the rows: `data.chat_template` takes your own" for name in FORMATS},
    "type.system_prompt": "`data.default_system` is the system message of rows that have none",
    "ds_type": "the ending of a file says it",
    "message_property_mappings": RECOGNIZED,
    "message_field_role": RECOGNIZED,
    "message_field_content": RECOGNIZED,
    "roles": RECOGNIZED,
    "conversation": "the model's own chat template is used; `data.chat_template` names another",
    "chat_template": "the model's own chat template is used; `data.chat_template` names another",
    "roles_to_train": "assistant turns count in the loss; `data.train_on` names others",
    "train_on_eos": "the token that ends a turn counts with its turn",
    "columns": "columns that no format needs are left alone",
    "shards": "`data.max_rows` takes a part of the rows",
    "revision": "the branch `main` is the default",
    "seed": "`data.seed` follows `seed_everything`",
}
Part = dict[str, Any]
Listed = Mapping[str, Any]
# Their settings that name data sets, and how many rows are held out of them.
HELD_OUT = ("val_set_size", "val_size", "test_split_size")
OF_DATA = (
    *("datasets", "dataset_mixture", "dataset_mixer", "pretraining_dataset", "dataset", "dataset_splits"),
    "dataset_configs",
    "test_datasets",
    "eval_dataset",
    *HELD_OUT,
)


def data_sets(given: Given, folder: Path) -> tuple[Settings, list[Line]]:
    """The data sets that a file names, however it names them, and what became of each of their keys.

    Args:
        given: The settings of the other tool.
        folder: The folder of the file, where LLaMA-Factory's dataset_info.json is looked for.
    """
    parts, lines = [], list[Line]()
    for name, listed in listed_sets(given, folder):
        part, said = part_of(name, listed, "data")
        parts.append(part)
        lines += said
    settings = of_parts(parts)
    for name, listed in validation_sets(given, folder):
        sets = settings.setdefault("data.val_sets", {})
        ours = re.sub(r"[^\w-]+", "_", Path(listed.get("path") or name).stem)
        ours += f"_{len(sets)}" if ours in sets else ""
        part, said = part_of(name, listed, f"data.val_sets.{ours}")
        sets[ours] = {"split": "train", "columns": {}, **part}  # without columns, it would have those of training
        lines += said
    splits = given.get("dataset_splits") or []
    if test := next((split for split in splits if is_test(split)), None):
        settings["data.val_split"] = test
        lines.append(Line("mapped", f"dataset_splits: {splits}", f"data.val_split: {test}"))
    if (size := named(given, *HELD_OUT) or named(given.get("dataset_mixture") or {}, *HELD_OUT)) is not None:
        name = next(name for name in HELD_OUT if name in {**given, **(given.get("dataset_mixture") or {})})
        lines.append(held_out(settings, name, size))
    return settings, lines


def part_of(name: str, listed: Listed, ours: str) -> tuple[Part, list[Line]]:
    """A data set as a part of `data.dataset`, and what became of each of its keys.

    Args:
        name: Name of the setting that it stands in.
        listed: Its keys and values.
        ours: Name of the setting that it becomes.
    """
    part, lines = Part(), list[Line]()
    for key, value in listed.items():
        if value is not None:
            found, why = entry(key, value, listed)
            columns = part.get("columns", {}) | found.get("columns", {})
            part |= found | ({"columns": columns} if columns else {})
            said = ", ".join(f"{ours}.{setting}: {each}" for setting, each in found.items())
            lines.append(Line("mapped" if said else "no counterpart", f"{name}.{key}: {value}", said or why))
    return part, lines


def listed_sets(given: Given, folder: Path) -> Iterator[tuple[str, Listed]]:
    """Each data set, as their keys and values, and the name of the setting that it stands in."""
    yield from numbered("datasets", given)
    yield from ((name, {**each, "type": "pretrain"}) for name, each in numbered("pretraining_dataset", given))
    for index, each in enumerate((given.get("dataset_mixture") or {}).get("datasets", [])):
        yield f"dataset_mixture.datasets[{index}]", each
    splits = given.get("dataset_splits") or []
    train = next((split for split in splits if not is_test(split)), None)
    configs = given.get("dataset_configs") or []
    for index, (path, weight) in enumerate((given.get("dataset_mixer") or {}).items()):
        config = configs[index] if index < len(configs) else None
        yield f"dataset_mixer[{index}]", {"path": path, "weight": weight, "split": train, "config": config}
    yield from listed_by_llama_factory("dataset", given, folder)


def validation_sets(given: Given, folder: Path) -> Iterator[tuple[str, Listed]]:
    """Each data set to validate on."""
    yield from numbered("test_datasets", given)
    yield from listed_by_llama_factory("eval_dataset", given, folder)


def numbered(name: str, given: Given) -> Iterator[tuple[str, Listed]]:
    """The data sets that a setting of axolotl lists, by path or with more keys."""
    found = given.get(name) or []
    for index, each in enumerate([found] if isinstance(found, str | Mapping) else found):
        listed = dict(each) if isinstance(each, Mapping) else {"path": each}
        if isinstance(own := listed.get("type"), Mapping):  # columns, and texts around them
            del listed["type"]
            listed |= {f"type.{key}": value for key, value in own.items() if value}
        yield f"{name}[{index}]", listed


def listed_by_llama_factory(name: str, given: Given, folder: Path) -> Iterator[tuple[str, Listed]]:
    """The data sets that a setting of LLaMA-Factory names."""
    found = given.get(name) or []
    for each in found.split(",") if isinstance(found, str) else found:
        yield f"{name} {each.strip()}", registered(each.strip(), given, folder)


def is_test(split: str) -> bool:
    """Whether a split is not for training, by its name."""
    return any(word in split for word in ("test", "eval", "val"))


def registered(name: str, given: Given, folder: Path) -> Listed:
    """A data set by its name in LLaMA-Factory's dataset_info.json; without that file, the name is all there is."""
    data_folder = given.get("dataset_dir") or "data"
    for start in (Path.cwd(), *folder.resolve().parents, folder):
        entry_of = read_mapping(start / data_folder / "dataset_info.json").get(name)
        if isinstance(entry_of, Mapping):
            file = entry_of.get("file_name")
            path = str(start / data_folder / file) if file else entry_of.get("hf_hub_url")
            rows = {"max_rows": entry_of.get("num_samples"), "split": entry_of.get("split") if not file else None}
            return {"path": path, "name": entry_of.get("subset"), **rows, **columns_of(entry_of, given)}
    return {"path": name, "unregistered": name} if not Path(name).exists() else {"path": name}


def columns_of(entry_of: Mapping[str, Any], given: Given) -> Listed:
    """The columns of an entry of dataset_info.json, whose `prompt` is the text in stage pt, and the prompt of pairs."""
    columns = dict(entry_of.get("columns") or {})
    if given.get("stage") == "pt":
        return {"field" if key == "prompt" else f"columns.{key}": value for key, value in columns.items()}
    if entry_of.get("ranking") and {"prompt", "query"} <= columns.keys():
        columns["prompt"] += f" + {columns.pop('query')}"
    known = KNOWN | ({"prompt": "prompt"} if entry_of.get("ranking") else {})
    return {f"field_{known.get(key, key)}": value for key, value in columns.items()}


def entry(key: str, value: Any, listed: Listed) -> tuple[Settings, str]:
    """What a key of a data set is of a part of `data.dataset`, or the reason why it has no counterpart."""
    if (field := key.removeprefix("type.")) in COLUMNS:
        column = COLUMNS[field]
        if key == "field_messages" and "field_chosen" in listed:
            column = "prompt"
        return ({"columns": {column: value}} if value != column else {}), RECOGNIZED
    if key == "type" and value in ("completion", "pretrain"):
        return {"format": "text"}, ""
    if key == "path" and value in READERS and listed.get("data_files"):
        return {}, "the ending of a file says it"
    if key == "data_files" and listed.get("path") in (None, *READERS):
        files = [value] if isinstance(value, str) else list(value)
        return ({"dataset": files[0]} if len(files) == 1 else {}), "one file is a data set: list each, or give a glob"
    if key in KEYS and (key, value) != ("revision", "main"):
        return {KEYS[key]: value}, ""
    return {}, REASONS.get(key, "smollit has no such setting of a data set")


def of_parts(parts: Sequence[Part]) -> Settings:
    """`data.dataset` and what goes with it: one data set has its split beside it, several have their own."""
    if not parts:
        return {}
    splits = {part.get("split") for part in parts}
    settings: Settings = {}
    if len(splits) == 1:
        settings = {"data.train_split": splits.pop() or "train"}
        parts = [{key: value for key, value in part.items() if key != "split"} for part in parts]
    if len(parts) > 1 or parts[0].get("weight", 1) != 1:
        return settings | {"data.dataset": list(parts)}
    return settings | {f"data.{key}": value for key, value in parts[0].items() if key != "weight"}


def held_out(settings: Settings, name: str, size: float) -> Line:
    """Hold rows out of the training split for validation: a number of them, or a fraction."""
    if not isinstance(size, int | float):
        raise ValueError(f"`{name}` must be a number of rows, or a fraction of them, got {size}")
    said, percent, split = f"{name}: {size}", round(100 * size), settings.get("data.train_split", "train")
    if not size:
        settings["data.val_split"] = None
        return Line("mapped", said, "data.val_split: None")
    if size < 1 and not percent:
        return Line("no counterpart", said, f"less than 1 % of the rows: set `data.val_split` to {split}[:NUMBER]")
    if "data.train_split" not in settings and "data.dataset" in settings:
        settings["data.val_split"] = None
        return Line("no counterpart", said, "the data sets have other splits: name one to validate on, `data.val_sets`")
    if set(split) & set("[+"):  # can't be divided once more
        settings["data.val_split"] = None
        return Line("no counterpart", said, f"divide {split} by hand: `data.train_split` and `data.val_split`")
    rows = f"{percent}%" if size < 1 else str(int(size))
    found = {"data.train_split": f"{split}[{rows}:]", "data.val_split": f"{split}[:{rows}]"}
    settings |= found
    return Line("mapped", said, ", ".join(f"{key}: {value}" for key, value in found.items()))
