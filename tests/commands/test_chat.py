"""`chat` with lines from a pipe: what it prints, what it remembers, and votes that `fit` takes."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from smollit.commands.chat.speaker import until_text
from smollit.commands.chat.view import View
from smollit.commands.export.export import export
from smollit.data.template.template import load_template
from smollit.main import main
from smollit.models import CausalLM
from tests.conftest import edited

Talk = Callable[..., str]


@pytest.fixture(scope="module")
def models(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A run folder with an export, and an export with other weights."""
    root = tmp_path_factory.mktemp("chat")
    found = []
    for seed, folder in enumerate((root / "run" / "export", root / "other")):
        torch.manual_seed(seed)
        policy = CausalLM(str(tiny_model), weights="random")
        for weight in policy.parameters():
            if weight.dim() > 1:  # larger than at the start of training: responses that depend on their prompts
                torch.nn.init.normal_(weight, std=0.3)
        template = load_template(AutoTokenizer.from_pretrained(tiny_model), "auto")
        export(policy, str(tiny_model), template=template, output=folder)
        found.append(folder)
    return str(found[0].parent), str(found[1])


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Talk:
    """talk(lines, *words) is what `chat` prints for these lines."""

    def run(lines: list[str], *words: str) -> str:
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        monkeypatch.setenv("COLUMNS", "60")
        main(["chat", *words])
        return capsys.readouterr().out

    return run


def greedy(model: str, chat: list[dict[str, str]], count: int = 6) -> str:
    """transformers alone."""
    folder = Path(model) / "export" if (Path(model) / "export").is_dir() else Path(model)
    network, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = network.generate(**inputs, max_new_tokens=count, do_sample=False)
    return str(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


# promise: chat
def test_a_conversation_has_a_memory_and_commands(models: tuple[str, str], talk: Talk) -> None:
    """Greedy, 6 tokens: the second prompt holds the first response; /retry repeats it; /reset and /system forget."""
    model = models[0]
    said = talk(
        ["Hi", "And?", "/retry", "/reset", "Hi", "/system Be brief.", "Hi"],
        model,
        "--temperature=0",
        "--max_new_tokens=6",
    )
    first = greedy(model, [user("Hi")])
    second = greedy(model, [user("Hi"), assistant(first), user("And?")])
    third = greedy(model, [{"role": "system", "content": "Be brief."}, user("Hi")])
    expected = [first, second, second, first, third]
    assert len({first, second, third}) == 3
    body = said.partition("lists the commands\n")[2]
    texts = [f"{text}\n[ends at max_new_tokens]\n" for text in expected]
    texts[2] += "[decoded greedily, so a retry is the same: /temperature 0.7 draws another response]\n"
    assert body == "".join(texts)


def test_sampling_follows_the_seed_and_what_is_wrong_is_said(models: tuple[str, str], talk: Talk) -> None:
    """Temperature 1, set while talking; the same seed gives the same response, another one another."""
    lines = ["/temperature 1", "Hi", "/temperature -1", "/retry", "/what"]
    runs = [talk(lines, models[1], f"--seed={seed}", "--max_new_tokens=12") for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]
    assert "needs a number of at least 0, got '-1'" in runs[0] and "/reset               forget" in runs[0]
    assert "there is nothing to retry" in talk(["/retry"], models[0])
    assert "greedily" not in talk(["/temperature 1", "Hi", "/retry"], models[0], "--max_new_tokens=2")


# case: E5
def test_a_conversation_beyond_the_positions_is_named(models: tuple[str, str], tmp_path: Path, talk: Talk) -> None:
    """A model of 40 positions: a short question is answered up to the last one, a long one is named and forgotten."""
    small = edited(Path(models[1]), tmp_path / "small", max_position_embeddings=40)
    said = talk(["Hi", "/reset", "there " * 60, "Hi"], str(small), "--temperature=0")
    assert said.count("[ends at the model's last position") == 2
    assert "the conversation has" in said and "40 positions: write less, or /reset" in said
    short = AutoTokenizer.from_pretrained(small).apply_chat_template(
        [user("Hi")], add_generation_prompt=True, return_dict=True
    )
    assert said.count(greedy(models[1], [user("Hi")], 40 - len(short["input_ids"]))) == 2


def test_two_models_respond_to_their_own_histories(models: tuple[str, str], talk: Talk) -> None:
    """Each after its name, and each continues its own first response."""
    said = talk(["Hi", "And?"], *models, "--temperature=0", "--max_new_tokens=6")
    for model in models:
        first = greedy(model, [user("Hi")])
        second = greedy(model, [user("Hi"), assistant(first), user("And?")])
        assert f"[{model}]\n{first}\n" in said and f"[{model}]\n{second}\n" in said


# promise: votes
@pytest.mark.slow
def test_votes_are_preference_rows_that_fit_takes(
    models: tuple[str, str], tiny_model: Path, tmp_path: Path, cache_dir: Path, talk: Talk
) -> None:
    """The response that was shown as 2 is chosen, then that shown as 1; a tie and a skip write nothing.

    No name is printed before its vote. DPO trains a step on the two rows.
    """
    votes = tmp_path / "votes.jsonl"
    words = ("--ab", f"--votes={votes}", "--temperature=0", "--max_new_tokens=6", "--seed=3")
    said = talk(["Hi", "2", "And?", "x", "1", "/reset", "Hm", "=", "Hm", "s"], *models, *words)
    rows = [json.loads(line) for line in votes.read_text().splitlines()]
    responses = [greedy(model, [user("Hi")]) for model in models]
    assert sorted(rows[0][side][1]["content"] for side in ("chosen", "rejected")) == sorted(responses)
    shown = said.partition("[2]\n")[2].partition("\n")[0]
    assert rows[0]["chosen"] == [user("Hi"), assistant(shown)] and responses.index(shown) == models.index(
        rows[0]["chosen_model"]
    )
    assert rows[1]["chosen"][:2] == rows[1]["rejected"][:2] == rows[0]["chosen"]  # the better one continues
    before = said.partition("1 is ")[0].partition("commands\n")[2]
    assert not any(model in before for model in models)
    assert len(rows) == 2 and "2 votes" in said and "1 ties" in said
    fitted: Any = main(
        [
            "fit",
            "--model=smollit.modules.DPOModule",
            f"--model.model_name={tiny_model}",
            "--data=smollit.data.UltraFeedbackDataModule",
            f"--data.dataset={votes}",
            "--data.train_split=train",
            "--data.val_split=null",
            "--data.max_length=64",
            f"--data.cache_dir={cache_dir}",
            "--trainer.max_steps=1",
            "--trainer.accelerator=cpu",
            f"--trainer.default_root_dir={tmp_path / 'dpo'}",
        ]
    )
    assert fitted.datamodule.reports["train"].kept == 2 and fitted.trainer.global_step == 1


def test_on_a_wide_terminal_two_responses_are_columns() -> None:
    """Both texts end in one line of the table, under their titles; what looks like markup is text."""
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    texts = View(console).two([("first", iter(["a", "b [bold]"])), ("second", iter(["c"]))])
    assert texts == ["ab [bold]", "c"]
    lines = console.file.getvalue().splitlines()
    assert any("first" in line and "second" in line for line in lines)
    assert any("ab [bold]" in line and "c" in line for line in lines)


def test_what_can_not_be_talked_to_is_refused(models: tuple[str, str], tmp_path: Path, talk: Talk) -> None:
    """A run without an export, one model with --ab, a folder that is not there, a model without a chat template."""
    (tmp_path / "run").mkdir()
    bare = edited(Path(models[1]), tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    settings = json.loads((bare / "tokenizer_config.json").read_text())
    (bare / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": None}))
    for words, sentence in (
        ([str(tmp_path / "run")], "holds no model"),
        ([models[0], "--ab"], "needs two models with --ab"),
        (["runs/none"], "does not exist"),
        ([str(bare)], "has no chat template"),
        ([models[0], "--temperature=-1"], "at least 0"),
        ([*models, "--ab", f"--votes={tmp_path}"], "can't be written"),
    ):
        with pytest.raises(SystemExit, match=sentence):
            talk([], *words)


@pytest.mark.slow
def test_a_conversation_that_the_template_refuses_is_named(models: tuple[str, str], tmp_path: Path, talk: Talk) -> None:
    """Gemma's template knows no system text: the message is not answered, and after /system without a text it is."""
    strict = edited(Path(models[1]), tmp_path / "strict")
    template = strict / "chat_template.jinja"
    refusal = "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    template.write_text(refusal + template.read_text())
    said = talk(["Hi", "/system", "Hi"], str(strict), "--system=Be kind", "--temperature=0")
    assert said.count("refuses this conversation: no system here") == 1 and greedy(models[1], [user("Hi")], 3) in said


def test_a_stop_text_ends_the_pieces_wherever_it_is_split() -> None:
    """`</s>` over three pieces; the start of one that goes on otherwise is shown."""
    assert "".join(until_text(["Well", " <", "/", "s> no", "thing"], ["</s>"])) == "Well "
    assert "".join(until_text(["a </", "b> c"], ["</s>"])) == "a </b> c"
    assert list(until_text(["a", "b"], [])) == ["a", "b", ""]
