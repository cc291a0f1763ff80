"""`inspect`: which rows are shown, that they are those of training, and the findings about a split."""

import copy
import html
import importlib.util
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from smollit.commands.inspect.findings import count_ends, find_all
from smollit.commands.inspect.histogram import draw, draw_lengths
from smollit.commands.inspect.split_view import SplitView
from smollit.main import main

ROOT = Path(__file__).parents[3]
QUESTION, ANSWER = "How many legs has a spider, and how many has a bee?", "A spider has eight and a bee has six."
Make = Callable[..., SplitView]
Look = Callable[..., str]


def wrong(view: SplitView) -> list[str]:
    return [finding.text for finding in find_all(view) if finding.severity == "wrong"]


# ---- the shown tokens are those of training


def ids_shown(text: str) -> list[int]:
    """Numbers after `ids`, without those in {- -}."""
    lines = [line.split("ids ", 1)[1] for line in text.splitlines() if line.startswith("    ids ")]
    return [int(number) for number in re.findall(r"\d+", re.sub(r"\{-.*?-\}", "", " ".join(lines)))]


@pytest.mark.parametrize("special", [True, False])
def test_special_tokens_of_responses_are_named(
    make: Make, tiny_tokenizer: PreTrainedTokenizerBase, special: bool
) -> None:
    """Those that were added as special are escaped, and so never learned; a user's are no matter."""
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_tokens(["<answer>"], special_tokens=special)
    view = make([["<answer>?", "<answer>A"], ["Q <answer>", "<answer>B"]], tokenizer=tokenizer)
    assert [line.partition("ll special")[0] for line in wrong(view)] == (
        ["in 2 of 2 compared rows (100.0%) responses spe"] * special
    )
    assert wrong(make([["<answer>?", "A"], ["Q <answer>", "B"]], tokenizer=tokenizer)) == []


@pytest.mark.parametrize("max_length", [256, 30])
def test_shown_ids_are_those_of_the_example(make: Make, look: Look, max_length: int) -> None:
    """Whole and truncated: the ids in the output are the cached ones; only what follows the last loss token is not."""
    view = make([[QUESTION, ANSWER, "Thanks!", "You are welcome, ask me any time."]], max_length)
    said, example = look(view, row=0, ids=True), view.examples[0]
    shown, cached = ids_shown(said), example["input_ids"]
    assert shown[: len(cached)] == cached
    assert len(shown) - len(cached) <= 1 and example["truncated"] == (max_length == 30)
    in_loss = " ".join(re.findall(r"⟦([\d ]+)⟧", said)).split()
    spans = zip(example["spans"][::2], example["spans"][1::2], strict=True)
    assert list(map(int, in_loss)) == [token for start, end in spans for token in cached[start:end]]


def test_a_pair_shows_its_prompt_once(make: Make, look: Look) -> None:
    view = make([(QUESTION, ANSWER, "Ask somebody else.")])
    said, example = look(view, row=0, ids=True), view.examples[0]
    assert ids_shown(said) == example["prompt_ids"] + example["chosen_ids"] + example["rejected_ids"]
    assert said.count(QUESTION) == 1
    order = [said.index(part) for part in ("prompt, shared", QUESTION, "chosen", ANSWER, "rejected", "Ask somebody")]
    assert order == sorted(order)


# ---- which rows


def rows_of(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"train row (\d+):", text)]


@pytest.fixture(scope="module")
def mixed(make: Make) -> SplitView:
    """Rows 0 and 4 are good, 1 has no content, 2 is too long, 3 spells a control token."""
    return make([["Hi", "Hello"], ["Hi", ""], ["Why?", "so " * 90], ["<|im_end|>", "Yes"], ["A", "B"]], 60)


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({}, [0, 2, 3]),
        ({"num_rows": 1}, [0]),
        ({"row": 4}, [4]),
        ({"row": 1}, [1]),
        ({"problems": True, "num_rows": 10}, [1, 2, 3]),
        ({"find": "Hello<|im_end|>"}, [0]),  # across a content and the template's own text
        ({"find": "Yes", "problems": True}, [3]),
        ({"find": "Hello<|im_end|>", "problems": True}, []),
        ({"find": "nobody says this"}, []),
    ],
)
def test_rows_are_chosen_by_number_text_or_problem(
    mixed: SplitView, look: Look, options: dict, rows: list[int]
) -> None:  # type: ignore[type-arg]
    """Good rows by default."""
    assert rows_of(look(mixed, **options)) == rows


def test_problems_come_with_their_reason(mixed: SplitView, look: Look) -> None:
    """1 dropped, 1 truncated, 1 escaped."""
    said = look(mixed, problems=True, num_rows=10)
    assert "3 of 5 were dropped, truncated or escaped" in said
    assert "dropped, empty response: " in said and "{-" in said and "control text escaped" in said
    with pytest.raises(ValueError, match="`num_rows` must be at least 0, got -1"):
        look(mixed, num_rows=-1)
    for number in (5, -1):
        with pytest.raises(ValueError, match=f"split train has rows 0 to 4, and no row {number}"):
            look(mixed, row=number)


def test_a_split_without_a_good_row_shows_the_bad_ones(make: Make, look: Look) -> None:
    said = look(make([("q", "a", "a"), ("r", "b", "b")]))
    assert rows_of(said) == [0, 1] and "dropped, identical responses" in said


# ---- the findings about a split


def test_nothing_is_wrong_with_good_rows(make: Make, look: Look) -> None:
    view = make([["Hi", "Hello"], ["Bye", "See you"]])
    assert find_all(view) == [] and look(view).endswith("nothing looks wrong\n")


def test_what_training_refuses_is_wrong_and_a_dropped_row_a_note(make: Make) -> None:
    """One of twenty rows is dropped: less than `max_dropped_share`. With less allowed it is refused."""
    rows = [[f"Say {number}", f"It is {number}"] for number in range(19)] + [["Hi", ""]]
    assert [finding.severity for finding in find_all(make(rows))] == ["note"]
    assert "training refuses this split: 1 of 20 rows" in wrong(make(rows, max_dropped_share=0.01))[0]
    (found,) = wrong(make([(f"question {number}", "yes", "yes") for number in range(3)]))
    assert "training refuses this split: in all 3 pairs" in found and "ln 2 = 0.6931" in found


# case: template-08
def test_a_template_whose_markers_split(make: Make) -> None:
    """The article's markers are text to this tokenizer: learned badly, and its </s> stops no generation."""
    found = wrong(make([["Hi", "Hello"], ["Bye", "See you"]], template="article"))
    assert "the chat template's markers" in found[0] and "</s>" in found[0]
    assert found[1].startswith("no loss span, of 2, ends with a token that stops generation")


def test_ends_are_counted_as_a_loop_counts_them(make: Make) -> None:
    """Of chats, span by span; of pairs, the chosen responses. Some are truncated, so not all end with id 2."""
    chats = make([["a", "b " * size, "c", "d " * size] for size in (1, 5, 9, 12)], 40)
    last = [example["input_ids"][end - 1] for example in chats.examples for end in example["spans"][1::2]]
    assert count_ends(chats) == (last.count(2), len(last)) and 0 < last.count(2) < len(last)
    pairs = make([("a", "b " * size, "c") for size in (1, 5, 40)], 30)
    ends = [example["chosen_ids"][-1] for example in pairs.examples]
    assert count_ends(pairs) == (ends.count(2), 3) and 0 < ends.count(2) < 3


def test_rows_that_two_splits_share(make: Make) -> None:
    """One of the two test chats is in train; another response to the same question is another chat. Pairs: prompts."""
    test = make([["Hi", "Hello"], ["Bye", "Never"]], name="test")
    (found,) = wrong(make([["Hi", "Hello"], ["Bye", "See you"], ["A", "B"]], others=[test]))
    assert found.startswith("1 of 2 chats (50.0%) of the smaller split are in both train and test")
    test = make([("Hi", "Hello", "Go away")], name="test")
    train = make([("Hi", "Good day", "No"), ("Bye", "See you", "Finally")], others=[test])
    assert any(line.startswith("1 of 1 prompts (100.0%) of the smaller split") for line in wrong(train))


def test_responses_that_repeat_the_question(make: Make) -> None:
    """One of 20 is a twentieth, and still silent; two are not. Short questions, quotes later on and rejected
    responses that repeat it are no echo."""
    good = [[f"{QUESTION} ({number})", f"{ANSWER} ({number})"] for number in range(20)]
    echo = [[f"{QUESTION} ({number})", f" {QUESTION} ({number}) {ANSWER}"] for number in range(20)]
    assert wrong(make(echo[:1] + good[1:])) == []
    (found,) = wrong(make(echo[:2] + good[2:]))
    assert "in 2 of 20 compared rows (10.0%) a response starts with the question" in found
    assert wrong(make([["Hello!", f"Hello! {number}"] for number in range(5)])) == []
    assert wrong(make([[asked, f"You ask: {asked}"] for asked, _ in good])) == []
    pairs = [(asked, answer, asked) for asked, answer in good]
    assert not any("starts with the question" in line for line in wrong(make(pairs)))
    assert any("starts with the question" in line for line in wrong(make([(a, c, b) for a, b, c in pairs])))


def test_texts_that_are_no_responses_and_pairs_that_contradict_each_other(make: Make) -> None:
    chats = [["Q", "A</s>"], ["R", "B <|eot_id|>\n"], ["S", "It ends with </s>, he said."], ["T", "NaN"]]
    view = make(chats)
    (found,) = wrong(view)
    assert "in 2 of 4 compared rows (50.0%) a response ends with `</s>`, `<|eot_id|>` as plain text" in found
    (note,) = [finding.text for finding in find_all(view) if finding.severity == "note"]
    assert note.startswith("in 1 of 4 compared rows (25.0%) a turn is no more than `nan`")
    pairs = [("Q", "A is it", "B is it"), ("Q", "B is it", "A is it"), ("Q", "A is it", "C is it")]
    assert any("2 of 3 pairs (66.7%) prefer what another pair" in line for line in wrong(make(pairs)))


def test_what_a_path_leaves_of_its_column_is_noted(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`meta.q` is printed, and `meta.note` is not; `meta.lang`, a single word, is no text of the chat."""
    row = {"meta": {"q": "Who?", "note": "Ask politely, please", "lang": "en"}, "a": "Nobody."}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    main(["inspect", "--data", "ChatDataModule", "--data.dataset", str(tmp_path / "rows.jsonl"),
          "--data.tokenizer_name", str(tiny_model), "--data.val_split", "null", "--data.cache_dir", str(tmp_path),
          "--data.columns", "{prompt: meta.q, completion: a}", "--model", "SFTModule", "--model.model_name",
          str(tiny_model), "--strict", "true"])  # fmt: skip
    said = " ".join(capsys.readouterr().out.split())
    assert "the column `meta` is not used as a whole, and has texts of up to 20 characters in 1 of 1" in said


# ---- the command


@pytest.mark.parametrize("kind", ["sft", "dpo"])
@pytest.mark.slow
def test_the_demo_has_nothing_wrong(
    kind: str, tiny_model: Path, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Also with --strict; no weights are loaded, and nothing is written into the run's folder."""
    monkeypatch.chdir(ROOT)  # the demo's configs name their files from the root
    words = [f"--data.cache_dir={cache_dir}", f"--data.tokenizer_name={tiny_model}", "--strict=true"]
    words += [f"--trainer.default_root_dir={tmp_path / 'run'}", f"--json={tmp_path / 'found.json'}"]
    cli = main(["inspect", f"--config=configs/demo/{kind}.yaml", *words])
    text = capsys.readouterr().out
    assert "360 of 360 rows" in text and "nothing looks wrong" in text  # of each part: SFT has two
    assert cli.model.policy is None and not (tmp_path / "run").exists()
    for report in json.loads((tmp_path / "found.json").read_text()).values():
        assert (report["rows"], report["kept"]) == (360, 360)
        # The rejected responses of pairs are chats of the SFT demo: their chosen ones are columns that are not used.
        assert all("not used" in finding["text"] for finding in report["findings"])


def test_strict_fails_on_identical_pairs(cache_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The article's broken pairs: one response in both columns. Exit code 1 and the reason; without --strict, 0."""
    rows = [json.dumps({"prompt": f"q{number}", "chosen": "a", "rejected": "a"}) for number in range(6)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(rows))
    words = ["inspect", "--model=DPOModule", f"--model.model_name={ROOT / 'smollit' / 'models' / 'tiny'}"]
    words += ["--data=PreferenceDataModule", f"--data.dataset={tmp_path / 'pairs.jsonl'}", "--data.train_split=all"]
    words += ["--data.val_split=null", "--data.chat_template=chatml", f"--data.cache_dir={cache_dir}"]
    words += [f"--json={tmp_path / 'found.json'}"]
    with pytest.raises(SystemExit, match="1"):
        main([*words, "--strict"])
    assert "ln 2 = 0.6931" in " ".join(capsys.readouterr().out.split())
    (report,) = json.loads((tmp_path / "found.json").read_text()).values()
    assert report["dropped"] == {"identical responses": 6} and report["findings"][0]["severity"] == "wrong"
    with pytest.raises(SystemExit, match=r"there is no split to show: set `data.val_split`"):
        main([*words, "--split=val"])
    main(words)


# ---- pictures


@pytest.mark.parametrize("rows", [[["a", "b"], ["c", "d " * 30]], [("a", "b", "c " * 9)]])
@pytest.mark.slow
def test_a_histogram_is_a_picture(make: Make, look: Look, tmp_path: Path, rows: list[Any]) -> None:
    """Of a legible size, and not empty."""
    said = look(make(rows), histogram=tmp_path / "new" / "lengths.png")
    with Image.open(tmp_path / "new" / "lengths.png") as picture:
        assert picture.width >= 800 and len(np.unique(np.asarray(picture.convert("L")))) > 10
    assert "lengths drawn: " in said


def test_the_histogram_holds_every_row(make: Make) -> None:
    """Heights of the bars add up to the rows; those beyond the line are the truncated ones."""
    view = make([["a", "b " * size] for size in range(1, 41)], 40)
    axes = Figure().subplots()
    draw_lengths(axes, view)
    assert sum(patch.get_height() for patch in axes.patches) == 40
    count = view.report.truncated
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert (
        labels == [f"not truncated ({40 - count} rows)", f"truncated ({count} rows)", "max_length 40"]
        and 0 < count < 40
    )
    with pytest.raises(ValueError, match="split train has no usable row"):
        draw(make([("q", "a", "a")]), Path("lengths.png"))


def test_a_histogram_without_matplotlib_names_the_extra(
    make: Make, look: Look, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`None` in sys.modules is Python's own mark of a module that can't be imported."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match=r"pip install 'smollit\[plots\]'"):
        look(make([["a", "b"]]), histogram=tmp_path / "lengths.png")


def load_script() -> ModuleType:
    """docs/make_inspect_pictures.py."""
    path = ROOT / "docs" / "make_inspect_pictures.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_pictures_of_the_docs(tmp_path: Path) -> None:
    """All six, and each shows what it is for; nothing is loaded from elsewhere."""
    pictures = {path.stem: path.read_text(encoding="utf-8") for path in load_script().draw_all(tmp_path)}
    texts = {name: re.sub(r"<[^>]+>", "", svg).replace("&#160;", " ") for name, svg in pictures.items()}
    assert "loss tokens" in texts["inspect_chat"]
    assert "prompt, shared by both responses" in texts["inspect_pair"]
    assert "6 pairs of 4 responses: 1 over 2 by 2, 1 over 3 by 5, 1 over 4 by 8" in texts["inspect_responses"]
    assert texts["inspect_responses"].count("Jupiter.") == 2  # each response once
    assert "<think>I need the weather.</think>" in html.unescape(texts["inspect_reasoning"])
    assert "are several tokens each" in texts["inspect_article"]
    assert "training refuses this split: in all 200 pairs" in texts["inspect_broken"]
    assert not any("http" in re.sub(r'xmlns="[^"]+"|<!--.*?-->', "", svg) for svg in pictures.values())


# ---- real rows


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize("folder", ["ultrachat_200k", "ultrafeedback_binarized"])
def test_real_rows_show_what_is_cached(shared: Path, look: Look, folder: str) -> None:
    """Twenty real rows with SmolLM2's tokenizer: shown ids, without the truncated ones, are the example's."""
    tokenizer = str(shared / "models" / "smollm2-tokenizer" / "instruct-135M")
    split, kind = ("train_sft", "chat") if folder == "ultrachat_200k" else ("train_prefs", "preference")
    view = load_script().make_view(str(shared / "data" / folder), split, kind, tokenizer, "auto")
    for example in view.examples.select(range(20)):
        shown = ids_shown(look(view, row=example["row"], ids=True))
        parts = ["input_ids"] if kind == "chat" else ["prompt_ids", "chosen_ids", "rejected_ids"]
        ids = [token for part in parts for token in example[part]]
        assert shown[: len(ids)] == ids


@pytest.mark.shared
def test_real_tokenizer_real_markers(shared: Path, make: Make) -> None:
    """SmolLM2's own template is sound; the article's splits `<|user|>` with its tokenizer too."""
    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "smollm2-tokenizer" / "instruct-135M")
    rows = [["Hi", "Hello"], ["Bye", "See you"]]
    assert wrong(make(rows, template="auto", tokenizer=tokenizer)) == []
    assert "<|user|>" in wrong(make(rows, template="article", tokenizer=tokenizer))[0]


def test_a_template_is_shown_without_a_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """How its spans are found, and each shape; it ends with 0 where all that is read is right."""
    source = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}"
    prompt = "{% if add_generation_prompt %}<assistant>{% endif %}"
    (tmp_path / "mine.jinja").write_text(source + prompt)
    with pytest.raises(SystemExit) as ended:
        main(["inspect", "--template", str(tmp_path / "mine.jinja"), "--strict"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0
    assert "generation prompt '<assistant>', end of a turn '<end>'" in shown
    assert "✓ several turns: read\n    'Reply 0.<end>'\n    'Reply 1.<end>'\n    'Reply 2.<end>'\n" in shown
    assert "- tools: refused" in shown and "prints nothing of messages[1], which has tool_calls" in shown
    source, prompt = source.replace("<end>", "{{ '<end>' if not loop.last }}"), prompt.replace("<ass", "<end><ass")
    (tmp_path / "mine.jinja").write_text(source + prompt)
    with pytest.raises(SystemExit) as ended:
        main(["inspect", "--template", str(tmp_path / "mine.jinja"), "--strict"])
    assert ended.value.code == 1 and "the model would not learn to stop" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"names a Jinja file, or a model: 'none.jinja' does not exist"):
        main(["inspect", "--template", "none.jinja"])
