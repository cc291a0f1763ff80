"""trl_parity.py: smollit computes what TRL computes, and a difference of one token is found."""

import importlib.util
import json
from collections.abc import Callable
from types import ModuleType

import pytest

needs_trl = pytest.mark.skipif(
    importlib.util.find_spec("trl") is None, reason="TRL is not installed: pip install -e '.[trl]'"
)


@pytest.fixture
def parity(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("trl_parity")


# promise: trl
# case: dpo-loss-09
# case: dpo-loss-10
# case: metrics-12
@needs_trl
@pytest.mark.parametrize(
    "options", [["--loss", "sigmoid"], ["--loss", "hinge"], ["--loss", "ipo", "--max-length", "40"]]
)
def test_smollit_computes_what_trl_computes(
    parity: ModuleType, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    """TRL pads one row per response and smollit shares the prompt: all metrics agree, and rewards are not 0.

    40 tokens truncate some of the rows, on both sides at the same position.
    """
    assert parity.main([*options, "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    found = {each["name"]: each for each in result["metrics"]}
    assert result["agree"] is True
    assert max(each["difference"] for each in found.values()) < 1e-4
    assert abs(found["dpo/rewards/margins"]["smollit"]) > 0.01


@needs_trl
def test_one_more_loss_token_is_a_difference(
    parity: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the newline after the last response, TRL has one loss token more in each of 2 x 4 responses: exit code 1."""
    monkeypatch.setattr(parity, "TRL_CHATML", parity.TRL_CHATML.replace("loop.last and", "false and"))
    assert parity.main(["--json"]) == 1
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    [tokens] = [each for each in result["metrics"] if each["name"] == "dpo/loss_tokens"]
    assert tokens["trl"] - tokens["smollit"] == 8 and not result["agree"]
