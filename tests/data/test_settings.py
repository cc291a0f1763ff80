"""The settings of the data modules: each is documented, and changes tokens, their order, or neither."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from jsonargparse import ArgumentParser
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from smollit.data import ChatDataModule, Part, PreferenceDataModule, UltraChatDataModule, UltraFeedbackDataModule
from smollit.data.sources import hub

MODULES = [ChatDataModule, PreferenceDataModule, UltraChatDataModule, UltraFeedbackDataModule]
# Settings that a resumed run may change: they change neither the tokens of the training rows nor their order. A new
# setting belongs to exactly one of `token_settings`, `order_settings` and this list.
FREE = {
    "val_split", "test_split", "predict_split", "val_sets", "train_batch_size", "val_batch_size", "max_batch_tokens",
    "global_batch_size",
    "num_workers", "num_proc", "pad_to_multiple_of", "max_dropped_share", "cache_dir",
}  # fmt: skip


def settings(module: type[ChatDataModule]) -> set[str]:
    """Names of all arguments of the class and its bases."""
    own = [inspect.signature(vars(base)["__init__"]) for base in module.__mro__ if "__init__" in vars(base)]
    named = [parameter for signature in own for parameter in signature.parameters.values()]
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return {parameter.name for parameter in named if parameter.kind not in kinds} - {"self"}


# promise: same-tokens
@pytest.mark.parametrize("module", MODULES)
def test_each_setting_changes_tokens_or_order_or_neither(module: type[ChatDataModule]) -> None:
    """Every setting is in exactly one of the three lists."""
    lists = [set(module.token_settings), set(module.order_settings), FREE]
    number = {name: sum(name in known for known in lists) for name in settings(module)}
    assert {name for name, count in number.items() if count != 1} == set()


def test_no_list_names_a_setting_that_does_not_exist() -> None:
    named = {*PreferenceDataModule.token_settings, *PreferenceDataModule.order_settings, *FREE}
    assert named == settings(PreferenceDataModule)


@pytest.mark.parametrize("module", [*MODULES, Part])
def test_each_setting_has_a_help_text(module: type, capsys: pytest.CaptureFixture[str]) -> None:
    """As `--data.help=...` prints them: no setting without a sentence."""
    parser = ArgumentParser()
    parser.add_class_arguments(module, "data")
    missing = [
        action.dest
        for action in parser._actions
        if action.dest.startswith("data.") and not action.dest.endswith(".help") and not (action.help or "").strip()
    ]
    assert missing == []


OWN = "{{ mood }}{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe good.<|im_end|>\n{% endif %}"
ROW = {
    "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
    "dialog": [{"role": "user", "content": "r"}, {"role": "assistant", "content": "b"}],
    "text": "words", "prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": 2.0, "score_rejected": 1.0,
}  # fmt: skip


# promise: same-tokens
# case: data-01
@pytest.mark.slow
@pytest.mark.parametrize("name", PreferenceDataModule.token_settings)
def test_each_token_setting_changes_the_cache_key(
    name: str,
    write: Callable[..., str],
    tmp_path: Path,
    tiny_tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The part of the training split is found twice, with one setting changed: two folders of the cache."""
    (tmp_path / "own.jinja").write_text(OWN + UltraChatDataModule("x", **usual(tmp_path)).template.source)
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer.name_or_path)
    tokenizer.add_tokens(["newword"])
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    before: dict[str, Any] = {"dataset": write([ROW] * 4)}
    before |= {
        "add_tokens": {"chat_template": "article"},
        "default_system": {"chat_template": str(tmp_path / "own.jinja")},
        "subset": {"dataset": str(tmp_path), "subset": "one"},
        "revision": {"dataset": "name/on-the-hub", "train_split": "train"},
        "pairs_of": {"columns": {"responses": "chosen, rejected", "chosen_if": "highest score_chosen, score_rejected"}},
        "chat_template_kwargs": {"chat_template": str(tmp_path / "own.jinja")},
    }.get(name, {})
    for subset in ("one", "two"):
        write([ROW, {"text": subset}], f"{subset}/all.jsonl")
    monkeypatch.setattr(hub, "load_dataset", lambda *_, **__: Dataset.from_list([ROW]))
    after: dict[str, Any] = {
        "dataset": write([ROW] * 5, "other.jsonl"), "train_split": "all[:3]", "format": "text",
        "columns": {"messages": "dialog"}, "extra_roles": ["critic"], "tokenizer_name": str(tmp_path / "tokenizer"),
        "chat_template": "article", "add_tokens": True, "default_system": "drop", "max_length": 65,
        "truncate": "left-turns", "train_on": "last", "control_text": "drop", "min_score_gap": 0.0,
        "score_ties": "drop", "convert": "copy.copy", "where": "score_chosen > 1", "max_rows": 3, "odd_turns": "merge",
        "revision": "main", "subset": "two", "pairs_of": "all", "chat_template_kwargs": {"mood": 1},
    }  # fmt: skip
    kind = PreferenceDataModule if name in ("min_score_gap", "score_ties", "pairs_of") else ChatDataModule

    def key(kind: type[ChatDataModule] = kind, **options: Any) -> str:
        (part,) = kind(**usual(tmp_path) | options).parts("train")["train"]
        return part.folder.name

    assert key(**before) == key(**before)
    assert key(**before) != key(**before | {name: after[name]})
    assert name == "pairs_of" or key(ChatDataModule, **before) != key(
        PreferenceDataModule, **before
    )  # the same rows as chats and as pairs


def usual(tmp_path: Path) -> dict[str, Any]:
    """Settings of a module that finds its rows in a file."""
    tiny = Path(__file__).parents[2] / "smollit" / "models" / "tiny"
    return {
        "train_split": "all", "val_split": None, "tokenizer_name": str(tiny), "chat_template": "chatml",
        "max_length": 64, "cache_dir": str(tmp_path / "cache"),
    }  # fmt: skip
