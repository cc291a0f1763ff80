"""`data.convert`: rows of any shape, turned into a known format by a function of the user's."""

import shutil
import sys
from pathlib import Path

import pytest

from smollit.data import ChatDataModule
from tests.data.conftest import END, make, ready, spans

THREADS = '{"thread": "What barks?|A dog."}\n{"thread": "What meows?|A cat."}\n'
SPLIT = """
def from_threads(row):
    question, reply = row["thread"].split("|")
    return {"prompt": question, "completion": reply}

def broken(row):
    return row["text"]

def none(row):
    return []

def of_texts(row):
    return list(row.values())
"""


def threads(folder: Path, monkeypatch: pytest.MonkeyPatch, *, convert: str) -> ChatDataModule:
    """Two rows in one column, and the module `threads` in the folder that the command is started from."""
    (folder / "threads.jsonl").write_text(THREADS)
    (folder / f"{convert.partition('.')[0]}.py").write_text(SPLIT)
    monkeypatch.syspath_prepend(folder)
    return make(folder, str(folder / "threads.jsonl"), convert=convert)


# promise: own-rows
def test_a_converted_row_is_a_row_of_its_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`question|reply` -> prompt and completion: only the reply and its end are loss tokens."""
    data = threads(tmp_path, monkeypatch, convert="threads_one.from_threads")
    data.prepare_data()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch.num_examples == 2
    spoken = data.template.tokenizer.decode(batch.labels.flatten()[batch.loss_positions].tolist())
    assert sorted(spoken.replace("<|im_end|>", "|").split("|")[:2]) == ["A cat.", "A dog."]


def test_other_functions_and_sources_meet_no_old_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two functions of a module, and a module beside it that changes: the cache has examples of none of the others."""
    (tmp_path / "rows.jsonl").write_text('{"q": "a"}\n')
    mine = "from words import WORD\n\n" + "\n\n".join(
        f"def {name}(row):\n    return {{'prompt': row['q'], 'completion': {said}}}"
        for name, said in (("one", "'one'"), ("imported", "WORD"))
    )
    (tmp_path / "mine.py").write_text(mine)
    monkeypatch.syspath_prepend(tmp_path)
    found = []
    for word, name in (("two", "one"), ("two", "imported"), ("three", "imported")):
        (tmp_path / "words.py").write_text(f"WORD = '{word}'\n")
        for module in ("mine", "words"):
            monkeypatch.delitem(sys.modules, module, raising=False)
        shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
        found += spans(ready(tmp_path, str(tmp_path / "rows.jsonl"), convert=f"mine.{name}"))
    assert found == [[f"{word}{END}"] for word in ("one", "two", "three")]


# promise: own-rows
@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("broken", r"`data.convert: threads_four.broken` fails with KeyError \('text'\) on the row .*thread"),
        (
            "of_texts",
            r"`data.convert: threads_four.of_texts` must return a dict of columns, .* got list of str",
        ),
        ("none", r"`data.convert: threads_four.none` leaves out the first 2,000 rows of .*, or all"),
        ("missing", r"`data.convert` must name a function.*'threads_four.missing' is none"),
    ],
)
def test_errors_name_the_function_and_the_row(
    function: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = threads(tmp_path, monkeypatch, convert=f"threads_four.{function}")
    with pytest.raises(ValueError, match=said):
        data.prepare_data()


def test_rows_that_are_left_out_first_do_not_decide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The 150 first rows become none: the format is that of the others."""
    (tmp_path / "numbers.jsonl").write_text("".join(f'{{"n": {number}}}\n' for number in range(155)))
    said = "def late(row):\n    return [{'prompt': 'q', 'completion': str(row['n'])}] if row['n'] >= 150 else []\n"
    (tmp_path / "late_rows.py").write_text(said)
    monkeypatch.syspath_prepend(tmp_path)
    module = ready(tmp_path, str(tmp_path / "numbers.jsonl"), convert="late_rows.late")
    assert spans(module) == [[f"{number}{END}"] for number in range(150, 155)]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import no_such_package\n", r"ModuleNotFoundError: No module named 'no_such_package' .*line 1\)"),
        ("def f(row)\n", r"SyntaxError: expected ':' \(broken_\w+\.py, line 1\)"),
    ],
)
def test_a_module_that_can_not_be_imported_is_named(
    source: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"broken_{len(source)}"
    (tmp_path / f"{name}.py").write_text(source)
    (tmp_path / "rows.jsonl").write_text(THREADS)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=f"`data.convert: {name}.f`: its module can't be imported: {said}"):
        make(tmp_path, str(tmp_path / "rows.jsonl"), convert=f"{name}.f").prepare_data()
