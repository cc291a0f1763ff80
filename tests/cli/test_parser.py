"""Errors of the parser, YAML, null, and the configs that a run keeps."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import get_loader

from smollit.cli import config_yaml
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
        (["--inner=Inner", "--inner.sise=2"], "`inner.sise`: there is no such setting. Did you mean `inner.size`?"),
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


# case: cli-14
@pytest.mark.parametrize(
    ("text", "value"),
    [("None", None), ("null", None), ("~", None), ('"None"', "None"), ("1e-5", 1e-5), ("-2", -2), (".5", 0.5),
     ("1.", 1.0), ("2026-11-28", "2026-11-28"), ("true", True), ("[1, a]", [1, "a"]), ("1.5e3", 1500.0)],
)  # fmt: skip
def test_yaml_values_are_what_they_look_like(text: str, value: Any) -> None:
    """YAML knows null and ~; people write None. Floats as Python writes them; a date stays text."""
    config_yaml.use()
    assert get_loader("yaml")(f"name: {text}\nother: Nonesuch") == {"name": value, "other": "Nonesuch"}
    assert config_yaml.load(text) == value


@pytest.mark.parametrize("text", ["C:", "{a, b}", "{x}"])
def test_text_that_yaml_takes_for_a_mapping_stays_text(text: str) -> None:
    assert config_yaml.load(text) == text
    assert config_yaml.load("a: null") == {"a": None}


# case: cli-14
def test_null_where_a_value_is_needed_is_refused() -> None:
    """`name` may be null, `size` may not."""
    path = "smollit.data.UltraChatDataModule"
    check_nulls(path, {"num_proc": None, "cache_dir": None}, "data")
    with pytest.raises(ValueError, match=r"`data.max_length` can't be null: expected int"):
        check_nulls(path, {"max_length": None}, "data")


# case: cli-08
def test_each_start_has_a_config_of_its_own(tmp_path: Path) -> None:
    """config.yaml, then config-resume-1.yaml, then -2."""
    for expected in ("config.yaml", "config-resume-1.yaml", "config-resume-2.yaml"):
        path = free_name(tmp_path)
        assert path.name == expected
        path.write_text(yaml.safe_dump({}))
