"""Errors of the parser, null, and the configs that a run keeps."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import get_loader

from smollit.training.config import SmollitParser, check_nulls, free_name, read_none_as_null


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
        (["--inner=Inner", "--inner.sise=2"], "`inner.sise`: there is no such setting. Did you mean `size`?"),
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
@pytest.mark.parametrize(("text", "value"), [("None", None), ("null", None), ("~", None), ('"None"', "None")])
def test_none_is_null_unless_it_is_quoted(text: str, value: Any) -> None:
    """YAML knows null and ~; people write None."""
    read_none_as_null()
    assert get_loader("yaml")(f"name: {text}\nother: Nonesuch") == {"name": value, "other": "Nonesuch"}


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
