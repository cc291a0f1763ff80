"""The parity script: its arithmetic, its exit codes, and, where TRL is installed, the comparison itself."""

import importlib.util
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "trl_parity.py"
needs_trl = pytest.mark.skipif(
    importlib.util.find_spec("trl") is None, reason="TRL is not installed: pip install -e '.[trl]'"
)


@pytest.fixture(scope="module")
def parity() -> Iterator[ModuleType]:
    """The script as a module, with its helpers beside it."""
    sys.path.insert(0, str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("trl_parity", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["trl_parity"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["trl_parity"]
    sys.path.remove(str(SCRIPT.parent))


@pytest.mark.parametrize(
    ("trl", "smollit", "expected"),
    [(2.0, 1.0, 0.5), (-1.0, 1.0, 2.0), (0.0, 0.0, 0.0), (0.0, 1e-9, 1.0), (math.nan, 1.0, math.inf)],
)
def test_a_difference_is_relative_to_the_larger_figure(
    parity: ModuleType, trl: float, smollit: float, expected: float
) -> None:
    """|2 - 1| / 2 = 0.5; |-1 - 1| / 1 = 2; equal is 0, even 0 and 0; 0 against another is 1; NaN never agrees."""
    assert parity.Figure("loss", trl, smollit).difference == expected


def test_an_answer_that_begins_with_white_space_is_left_out(parity: ModuleType) -> None:
    """Only the assistant's first character counts: " Hi" is left out, "Hi " and a user's " Hi" are not."""
    row = [{"role": "user", "content": " Hi"}, {"role": "assistant", "content": "Hi "}]
    assert parity.comparable({"messages": row}, ("messages",))
    assert not parity.comparable({"messages": [row[0], {"role": "assistant", "content": " Hi"}]}, ("messages",))


def test_trl_is_given_smollits_chatml_up_to_the_last_end_token(parity: ModuleType, tiny_model: Path) -> None:
    """Without its generation markers, TRL's template renders what chatml.jinja renders, less the last newline."""
    from transformers import AutoTokenizer

    ours, theirs = AutoTokenizer.from_pretrained(tiny_model), parity.trl_tokenizer(tiny_model)
    chat = [{"role": role, "content": role.upper()} for role in ("system", "user", "assistant", "user", "assistant")]
    rendered = ours.apply_chat_template(chat, tokenize=False)
    assert theirs.apply_chat_template(chat, tokenize=False) + "\n" == rendered
    prompts = [
        tokenizer.apply_chat_template(chat[:2], tokenize=False, add_generation_prompt=True)
        for tokenizer in (ours, theirs)
    ]
    assert prompts[0] == prompts[1]


def test_a_difference_above_the_tolerance_is_exit_code_1(
    parity: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """1.0002 against 1 differ by 2e-4, and 1e-4 is allowed; 1.00005 against 1 is within it."""
    monkeypatch.setattr(parity, "find_spec", lambda name: object())
    monkeypatch.setattr(parity, "version", lambda name: "0")
    monkeypatch.setattr(parity, "prepare", lambda options, workspace: None)
    for value, code in ((1.0002, 1), (1.00005, 0)):
        monkeypatch.setattr(parity, "compare", lambda setting, value=value: [parity.Figure("sft/loss", 1.0, value)])
        assert parity.main(["--json"]) == code
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["agree"] is (code == 0)


def test_without_trl_it_says_what_to_install(
    parity: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """TRL is an extra of its own."""
    monkeypatch.setattr(parity, "find_spec", lambda name: None)
    assert parity.main([]) == 2
    assert "pip install -e '.[trl]'" in capsys.readouterr().err


# case: dpo-loss-09
# case: dpo-loss-10
# case: metrics-12
@needs_trl
@pytest.mark.parametrize("options", [["--loss", "sigmoid"], ["--loss", "ipo", "--max-length", "40"]])
def test_smollit_computes_what_trl_computes(
    parity: ModuleType, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    """TRL pads one row per answer and smollit shares the prompt: all figures agree, and rewards are not 0.

    40 tokens cut some of the rows, on both sides in the same place.
    """
    assert parity.main([*options, "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    figures = {figure["name"]: figure for figure in result["figures"]}
    assert result["agree"] is True
    assert max(figure["difference"] for figure in figures.values()) < 1e-4
    assert abs(figures["dpo/rewards/margins"]["smollit"]) > 0.01


@needs_trl
def test_one_more_trained_token_is_noticed(parity: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the newline behind the last answer, TRL trains one token more in each of 2 x 4 answers: exit code 1."""
    monkeypatch.setattr(parity, "TRL_CHATML", parity.TRL_CHATML.replace("loop.last and", "false and"))
    monkeypatch.setattr(parity, "trl_sft", lambda setting: dict.fromkeys(parity.SFT, 1.0) | TRL_NAMED)
    monkeypatch.setattr(parity, "smollit_sft", lambda setting: dict.fromkeys(parity.SFT, 1.0))
    seen: list[list] = []
    compare = parity.compare
    monkeypatch.setattr(parity, "compare", lambda setting: seen.append(compare(setting)) or seen[0])
    assert parity.main([]) == 1
    tokens = next(figure for figure in seen[0] if figure.name == "dpo/trained_tokens")
    assert tokens.trl - tokens.smollit == 8


TRL_NAMED = {"mean_token_accuracy": 1.0, "grad_norm": 1.0}
