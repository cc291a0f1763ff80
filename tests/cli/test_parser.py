"""Errors of the parser, YAML, null, and the configs that a run keeps."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import get_loader

from smollit.cli import config_yaml
from smollit.cli.logger_setting import with_full_names
from smollit.cli.nulls import check_nulls
from smollit.cli.parser import SmollitParser
from smollit.cli.run_config import free_name


class Inner:
    """A class with settings.

    Args:
        size: A number.
        name: A text, or none.
    """

    def __init__(self, size: int = 1, name: str | None = "a") -> None:
        self.size = size
        self.name = name


def parser() -> SmollitParser:
    made = SmollitParser(prog="smollit")
    made.add_argument("--steps", type=int, default=1)
    made.add_argument("--inner", type=Inner)
    return made


# case: cli-04
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--stebs=2"], "`stebs`: there is no such setting. Did you mean `steps`?"),
        (
            ["--inner=Inner", "--inner.sise=2"],
            "`inner.sise`: there is no such setting of Inner. Did you mean `inner.size`?",
        ),
        (["--zzzzzzz=2"], "`zzzzzzz`: there is no such setting\n"),
    ],
)
def test_unknown_key_gets_its_full_name_and_the_nearest(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One edit away from a valid name; nothing near: no guess."""
    with pytest.raises(SystemExit) as stopped:
        parser().parse_args(arguments)
    assert stopped.value.code == 2
    assert expected in capsys.readouterr().err


# case: cli-14, D1
@pytest.mark.parametrize(
    ("text", "value"),
    [("None", None), ("null", None), ("~", None), ('"None"', "None"), ("1e-5", 1e-5), ("-2", -2), (".5", 0.5),
     ("1.", 1.0), ("2026-11-28", "2026-11-28"), ("true", True), ("[1, a]", [1, "a"]), ("1.5e3", 1500.0),
     ("on", "on"), ("off", "off"), ("yes", "yes"), ("No", "No"), ("y", "y"), ("012", 12), ("-08", -8), ("1:30", "1:30"),
     ("12:30:45.5", "12:30:45.5"), ("0x1f", 31), ("1_000", 1000), ("=", "="), (".inf", float("inf")), ("", None),
     ("TRUE", True), ("0b11", "0b11")],
)  # fmt: skip
def test_yaml_values_are_what_they_look_like(text: str, value: Any) -> None:
    """YAML 1.2's booleans and integers; null, and None as people write it; floats as in Python; a date stays text.

    The same again after a round trip through a file, in which texts such as "None", "012" and "1e-5" are in quotes.
    """
    config_yaml.use(with_full_names)
    assert get_loader("yaml")(f"name: {text}\nother: Nonesuch") == {"name": value, "other": "Nonesuch"}
    assert config_yaml.load(text) == value
    for kept in ({"a": value, "b": 1}, {"a": text}):
        assert config_yaml.load(config_yaml.dump(kept)) == kept


# case: D1
@pytest.mark.parametrize("text", ["a: 1\nb: 2\na: 3\n", "x:\n- {a: 1, b: 1,\n   a: 2}", "<<: {a: 1}\nc: 1\nc: 1"])
def test_a_key_given_twice_is_an_error_with_its_lines(text: str, tmp_path: Path, capsys: Any) -> None:
    """At any depth. Merging a mapping whose keys are overridden is YAML's own way, and no repetition."""
    config_yaml.use(with_full_names)
    last = text.count("\n", 0, text.rindex("c:" if "c:" in text else "a:")) + 1
    with pytest.raises(yaml.YAMLError, match=rf"is given twice, in lines \d and {last}"):
        config_yaml.load(text)
    assert config_yaml.load("a: &a {b: 1, c: 2}\nd: {<<: *a, b: 3}")["d"] == {"b": 3, "c": 2}


@pytest.mark.parametrize("text", ["C:", "{a, b}", "{x}"])
def test_text_that_yaml_takes_for_a_mapping_stays_text(text: str) -> None:
    assert config_yaml.load(text) == text
    assert config_yaml.load("a: null") == {"a": None}


# case: cli-14
@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"init_args": {"num_proc": None, "cache_dir": None}}, None),
        ({"init_args": {"max_length": None}}, r"`data.max_length` can't be null: expected an integer"),
        ({"init_args": {"dataset": [{"class_path": "smollit.data.Part", "init_args": {"weight": None}}]}},
         r"`data.dataset.weight` can't be null: expected a number"),
        ({"init_args": {"val_sets": {"a": {"class_path": "smollit.data.Part", "init_args": {"weight": None}}}}},
         r"`data.val_sets.a.weight` can't be null"),
    ],
)  # fmt: skip
def test_null_where_a_value_is_needed_is_refused(section: dict[str, Any], expected: str | None) -> None:
    """`num_proc` may be null; at any depth, what may not is named."""
    with pytest.raises(ValueError, match=expected) if expected else nullcontext():
        check_nulls({"class_path": "smollit.data.UltraChatDataModule", **section}, "data")


# case: cli-08
def test_each_start_has_a_config_of_its_own(tmp_path: Path) -> None:
    """config.yaml, then config-resume-1.yaml, then -2."""
    for expected in ("config.yaml", "config-resume-1.yaml", "config-resume-2.yaml"):
        path = free_name(tmp_path)
        assert path.name == expected
        path.write_text(yaml.safe_dump({}))
