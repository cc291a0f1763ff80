"""From a data module to what `inspect` looks at: every part of every split, as training has it."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from smollit.commands.inspect import split_view
from smollit.commands.inspect.findings import find_all
from smollit.commands.inspect.pieces import inspect_row
from smollit.commands.inspect.split_view import views
from smollit.data import ChatDataModule, Part, PreferenceDataModule
from smollit.data.encoding import part
from smollit.data.formats.drop_reason import DropReason

TINY = Path(__file__).resolve().parents[3] / "smollit" / "models" / "tiny"


@pytest.fixture(autouse=True)
def _datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))


def chats(*texts: str) -> list[dict[str, Any]]:
    return [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": text}]} for text in texts]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def make(tmp_path: Path, dataset: str | list[Part], kind: type[ChatDataModule] = ChatDataModule, **options: Any) -> Any:
    options = {"train_split": "all[:4]", "val_split": "all[4:]", "chat_template": "chatml", "max_length": 64} | options
    return kind(dataset, tokenizer_name=str(TINY), cache_dir=str(tmp_path / "cache"), **options)


def test_views_have_the_examples_and_rows_of_training(tmp_path: Path) -> None:
    """6 rows: 4 to train, 2 to validate; test is what val is. The source row of an example is the row of the file."""
    data = make(tmp_path, write(tmp_path / "mine.jsonl", chats(*"abcdef")))
    found = views(data)
    assert {name: [view.num_rows for view in parts] for name, parts in found.items()} == {
        "train": [4], "val": [2], "test": [2],
    }  # fmt: skip
    data.prepare_data()
    data.setup("fit")
    (train,), (val,) = found["train"], found["val"]
    assert train.examples["input_ids"][:] == data.examples["train"].rows["input_ids"][:]
    (shown,) = inspect_row(val.encoder, val.row(1), 1)
    assert "f" in "".join(piece.text for piece in shown.pieces if piece.state == "loss")


def test_what_training_would_refuse_can_be_looked_at(tmp_path: Path) -> None:
    """4 pairs of identical responses: setup() raises, and the view has 0 examples and the reason."""
    pairs = [{"prompt": f"q{number}", "chosen": "a", "rejected": "a"} for number in range(4)]
    data = make(tmp_path, write(tmp_path / "mine.jsonl", pairs), PreferenceDataModule, val_split=None)
    (view,) = views(data)["train"]
    assert (len(view.examples), view.report.dropped) == (0, {"identical responses": 4})
    assert view.problems() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match=r"ln 2 = 0\.6931"):
        data.setup("fit")


def test_every_part_and_every_named_set_has_a_view(tmp_path: Path) -> None:
    """Two parts to train on, two sets to validate on; each view knows those of the other splits only."""
    one, two = (write(tmp_path / f"{name}.jsonl", chats(*"abcdef")) for name in ("one", "two"))
    sets = {"small": Part(one, "all[4:5]"), "rest": Part(two, "all[5:]")}
    data = make(tmp_path, [Part(one), Part(two, "all[:2]")], val_sets=sets)
    found = views(data)
    assert [view.name for view in found["train"]] == [f"all[:4] of {one}", f"all[:2] of {two}"]
    assert [(view.name, view.num_rows) for view in found["val"]] == [("small", 1), ("rest", 1)]
    others = [{other.name for other in view.others} for view in found["train"]]
    assert others[0] == others[1]
    assert {"small", "rest"} <= others[0]
    assert not others[0] & {view.name for view in found["train"]}


def test_views_are_not_tokenised_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training has tokenized the rows: `inspect` reads them from the cache, and the other way round."""
    data = make(tmp_path, write(tmp_path / "mine.jsonl", chats(*"abcdef")))
    views(data)

    def never(*_: Any) -> None:
        raise AssertionError("it is in the cache")

    monkeypatch.setattr(part, "build", never)
    views(data)
    data.prepare_data()


def test_a_stream_can_be_looked_at(tmp_path: Path) -> None:
    """Streamed rows are not in a cache: `inspect` shows those that a run would read first."""
    data = make(tmp_path, write(tmp_path / "mine.jsonl", chats(*"abcdef")), streaming=True)
    (view,) = views(data)["train"]
    assert view.num_rows == 4
    assert "loss" in {piece.state for piece in inspect_row(view.encoder, view.row(0), 0)[0].pieces}


# case: F5
def test_texts_that_no_message_has_are_named_with_their_weight(tmp_path: Path) -> None:
    """`prompt` repeats the message; `history` belongs into the chat, `notes` are as long as half of it; of `id`, single
    words, and `text`, which has the chat once more, a note is enough. `mine` is said to be left alone on purpose. The
    template prints `documents` where it gets them, however short they are. And there is an image."""
    words = "more than twenty characters"
    rows = chats(*"abcd")
    rows[0]["messages"][0]["content"] = "<image> What is this?"
    for row in rows:
        question, response = (message["content"] for message in row["messages"])
        row |= {"prompt": question, "id": "1", "history": words, "notes": [{"text": words}], "mine": words}
        row |= {"documents": ["d"], "text": f"Question: {question} Answer: {response}, as a text"}
    path = tmp_path / "documents.jinja"
    path.write_text(
        "{% if documents %}{{ documents | join }}{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    options = {"chat_template": str(path), "columns": {"mine": ""}, "val_split": None}
    (view,) = views(make(tmp_path, write(tmp_path / "mine.jsonl", rows), **options))["train"]
    found = {finding.text.split(" (")[0].split(":")[0]: finding.severity for finding in find_all(view)}
    assert found == {
        "in 1 of 4 compared rows": "wrong",
        "the column `history` is not used, and has texts of up to 27 characters in 4 of 4 compared rows": "wrong",
        "the column `notes` is not used, and has texts of up to 27 characters in 4 of 4 compared rows": "wrong",
        "the column `documents` is not used, and the chat template prints it where it gets it": "wrong",
        "the column `text` is not used, and has texts of up to 52 characters in 4 of 4 compared rows": "note",
        "columns that are not used, and whose values the chats lack, in up to 4 of 4 compared rows": "note",
    }


def test_columns_that_only_later_rows_have_are_not_lost(tmp_path: Path) -> None:
    """Those of the first 100 rows are known: labels of bad completions and images drop their rows, others are named."""
    rows = chats(*map(str, range(106)))
    late = [
        {"label": False},
        {"images": ["a.png"]},
        {"Liked": "no"},
        {"label": True},
        {"documents": ["a text of them"]},
    ]
    for row, columns in zip(rows[101:], late, strict=True):
        row |= columns
    (view,) = views(make(tmp_path, write(tmp_path / "mine.jsonl", rows), train_split="train", val_split=None))["train"]
    assert view.report.dropped == {DropReason.BAD_COMPLETION: 2, DropReason.NOT_TEXT: 1}
    assert view.report.examples[DropReason.BAD_COMPLETION] == ["row 101: `label` is False", "row 103: `Liked` is no"]
    severities = {finding.severity for finding in find_all(view) if "the column `documents`" in finding.text}
    assert severities == {"wrong"}


# case: F13
def test_shared_rows_are_named_once_where_validation_and_test_are_one_split(tmp_path: Path) -> None:
    data = make(tmp_path, write(tmp_path / "mine.jsonl", chats(*"abcdeb")))
    (view,) = views(data)["train"]
    assert [line for line in (finding.text for finding in find_all(view)) if "are in both" in line] == [
        "1 of 2 chats (50.0%) of the smaller split are in both all[:4] and all[4:]: validation would measure"
        " memorization. Remove them from one of the two, or set `data.drop_val_rows`"
    ]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_large_file_is_looked_at_by_its_first_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streaming: bool
) -> None:
    """4 of 6 rows are to train on; 2 are tokenized, and row 3 is found all the same. In full, all are."""
    monkeypatch.setattr(split_view, "LARGE", 0)
    monkeypatch.setattr(split_view, "NUM_SAMPLED", 2)
    data = make(tmp_path, write(tmp_path / "mine.jsonl", chats(*"abcdef")), streaming=streaming)
    (view,) = views(data, in_full=False)["train"]
    assert (view.num_sampled, len(view.examples), view.problems()) == (2, 2, [])
    assert "d" in inspect_row(view.encoder, view.row(3), 3)[0].pieces[-1].text
    with pytest.raises(ValueError, match=r"split all\[:4\] has fewer than 5 rows"):
        view.row(4)
    assert not list((tmp_path / "cache").glob("*/examples"))
    assert views(data)["train"][0].num_rows == 4
