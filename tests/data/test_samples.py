"""The sample rows and the tiny tokenizer that ship with the package."""

import hashlib
import importlib.util
import json
from itertools import combinations
from pathlib import Path
from types import ModuleType

import pytest
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "smollit" / "data" / "samples"
TINY = ROOT / "smollit" / "models" / "tiny"
SIZES = {
    "ultrachat/train_sft": 360,
    "ultrachat/test_sft": 60,
    "ultrafeedback/train_prefs": 360,
    "ultrafeedback/test_prefs": 60,
}
CHATS = ["ultrachat/train_sft", "ultrachat/test_sft"]
PAIRS = ["ultrafeedback/train_prefs", "ultrafeedback/test_prefs"]


def read(name: str) -> list[dict]:
    return [json.loads(line) for line in (SAMPLES / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def roles(messages: list[dict[str, str]]) -> list[str]:
    return [message["role"] for message in messages]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(TINY)


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_samples", ROOT / "benchmarks" / "make_samples.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", SIZES)
def test_counts_and_prompt_ids(name: str) -> None:
    rows = read(name)
    assert len(rows) == SIZES[name]
    assert all(row["prompt_id"] == hashlib.sha256(row["prompt"].encode()).hexdigest() for row in rows)


@pytest.mark.parametrize("name", CHATS)
def test_chats_have_the_columns_of_ultrachat(name: str) -> None:
    for row in read(name):
        assert list(row) == ["prompt", "prompt_id", "messages"]
        assert all(set(message) == {"content", "role"} and message["content"].strip() for message in row["messages"])
        first_user = next(message for message in row["messages"] if message["role"] == "user")
        assert first_user["content"] == row["prompt"]


@pytest.mark.parametrize("name", CHATS)
def test_roles_alternate_and_end_with_the_assistant(name: str) -> None:
    """2 to 6 messages: perhaps a system message, then user and assistant in turn."""
    chats = [roles(row["messages"]) for row in read(name)]
    assert {2, 4, 6} <= {len(chat) for chat in chats} <= {2, 3, 4, 5, 6}
    assert any(chat[0] == "system" for chat in chats)
    for chat in chats:
        turns = chat[chat[0] == "system" :]
        assert turns == ["user", "assistant"] * (len(turns) // 2)


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_have_the_columns_of_ultrafeedback(name: str) -> None:
    columns = ["prompt", "prompt_id", "chosen", "rejected", "messages", "score_chosen", "score_rejected"]
    for row in read(name):
        assert list(row) == columns
        assert row["messages"] == row["chosen"]
        assert row["chosen"][0] == row["rejected"][0] == {"content": row["prompt"], "role": "user"}
        assert roles(row["chosen"]) == roles(row["rejected"]) == ["user", "assistant"]
        assert isinstance(row["score_chosen"], float) and row["score_chosen"] > row["score_rejected"]


@pytest.mark.parametrize("name", PAIRS)
def test_no_pair_is_equal(name: str) -> None:
    assert all(row["chosen"][1]["content"].strip() != row["rejected"][1]["content"].strip() for row in read(name))


def test_no_prompt_occurs_twice() -> None:
    """840 rows, 840 prompts, also when case and spaces are ignored; and so for each two files."""
    prompts = {name: [" ".join(row["prompt"].casefold().split()) for row in read(name)] for name in SIZES}
    assert all(len(set(prompts[name])) == SIZES[name] for name in SIZES)
    assert all(set(prompts[one]).isdisjoint(prompts[other]) for one, other in combinations(SIZES, 2))


@pytest.mark.parametrize(("one", "other"), [CHATS, PAIRS])
def test_no_user_turn_of_the_test_file_was_seen_in_training(one: str, other: str) -> None:
    """Later turns may start with a link such as "Thanks! ", so a test prompt must not be *inside* a training turn."""
    turns = {m["content"] for row in read(one) for m in row["messages"] if m["role"] == "user"}
    assert not [row["prompt"] for row in read(other) if any(row["prompt"] in turn for turn in turns)]


@pytest.mark.parametrize("name", PAIRS)
def test_length_does_not_tell_chosen_from_rejected(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Sum over sum, in words and in tokens, stays between 0.8 and 1.25."""
    rows = read(name)
    for measure in (str.split, tokenizer.tokenize):
        chosen, rejected = (
            sum(len(measure(row[side][1]["content"])) for row in rows) for side in ("chosen", "rejected")
        )
        assert 0.8 < chosen / rejected < 1.25


@pytest.mark.parametrize(
    "text",
    ["Crème brûlée 🍮, ça va?", "日本語 ไทย العربية שלום", "a\n\n  b\t\r\n", "👩‍👩‍👧 0123 don't , no .", "\x00ò"],
)
def test_tokenizer_round_trips(text: str, tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_tokenizer_follows_smollm(tokenizer: PreTrainedTokenizerBase) -> None:
    """Markers are one token each, digits stand alone, and nothing is added: 3 markers -> ids 0, 1, 2."""
    assert tokenizer("<|endoftext|><|im_start|><|im_end|>")["input_ids"] == [0, 1, 2]
    assert tokenizer.tokenize("2048") == ["2", "0", "4", "8"]
    assert [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id] == [0, 0, 0]
    assert tokenizer.pad_token is None and tokenizer.chat_template is None


def test_config_fits_the_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    config = AutoConfig.from_pretrained(TINY)
    assert config.vocab_size == len(tokenizer) == 2048
    assert config.bos_token_id == config.eos_token_id == 0
    assert not list(TINY.glob("*.safetensors")) and not list(TINY.glob("*.bin"))


def test_the_maker_makes_the_same_bytes(maker: ModuleType, tmp_path: Path) -> None:
    """Rows only: another version of `tokenizers` may break ties between merges in another way."""
    maker.write_samples(tmp_path)
    for name in SIZES:
        assert (tmp_path / f"{name}.jsonl").read_bytes() == (SAMPLES / f"{name}.jsonl").read_bytes()


def test_a_flaw_is_about_as_long_as_the_answer_asks(maker: ModuleType) -> None:
    """Every flaw gives another text than the response, at most twice its 60 letters long, plus one more."""
    answer = 'The opposite of the short word "hot" is the word "cold", yes.'
    for flaw in maker.FLAWS:
        text = maker.flawed('What is the opposite of "hot"?', answer, flaw, maker.random.Random(0))
        assert text != answer and 20 < len(text) < 2 * len(answer) + 80
