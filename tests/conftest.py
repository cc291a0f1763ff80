"""What all tests share: a tiny model with its tokenizer, examples, batches, short runs, and the real rows of ../shared.

Fixtures are found by name; functions are imported, as in `from tests.conftest import example_chats`.
"""

# The hub library reads its environment when it is imported
import os

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing downloads

import json
import random
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import settings
from lightning.pytorch import Callback
from tensorboard.summary.writer import event_file_writer
from torch.utils.data import DataLoader
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from smollit.batch import Batch
from smollit.data import UltraChatDataModule, UltraFeedbackDataModule
from smollit.data.batching.collate import collate_chats, collate_pairs, unpacked
from smollit.modules import DPOModule, FineTuningModule, SFTModule
from smollit.training import SmollitTrainer

ROOT = Path(__file__).parent.parent
TINY = ROOT / "smollit" / "models" / "tiny"
SAMPLES = ROOT / "smollit" / "data" / "samples"
# One thread and one instruction set fix the order of sums, on Intel's processors: MKL_CBWR does nothing on others.
FIXED_ORDER = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_CBWR": "AVX2",
    "MKL_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}
CPU = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
CAN_FIX_ORDER = "GenuineIntel" in CPU and "avx2" in CPU


# The same examples in every run; `--hypothesis-profile default` draws new ones.
settings.register_profile("same", derandomize=True, deadline=None)
settings.load_profile("same")

# TensorBoard reads files that one process makes in one second by their names: numbers of equal length keep the order.
event_file_writer._global_uid = event_file_writer.AtomicCounter(10**6)

Example = dict[str, Any]
QUIET = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "num_sanity_val_steps": 0,
}


# ---- examples and batches, without a tokenizer


def chats_of(*ids: list[int]) -> list[Example]:
    """Chats of these tokens, with a loss from their second token on."""
    return [{"input_ids": tokens, "spans": [1, len(tokens)], "row": row} for row, tokens in enumerate(ids)]


def example_chats(count: int = 8) -> list[Example]:
    """Chats of different lengths: number i has 3 + i tokens, of which the last i + 1 are loss tokens."""
    ids = [[(7 * row + 3 * index) % 90 + 3 for index in range(3 + row)] for row in range(count)]
    return [{"input_ids": tokens, "spans": [2, len(tokens)], "row": row} for row, tokens in enumerate(ids)]


def example_pairs(count: int = 8) -> list[Example]:
    """Preference pairs: prompts of 2 tokens, chosen responses of 2, 3, 4, 2, ... tokens, rejected ones of 2."""
    return [
        {"prompt_ids": [1, 20 + i], "chosen_ids": [30 + i] * (1 + i % 3) + [2], "rejected_ids": [50 + i, 2], "row": i}
        for i in range(count)
    ]


def rated_rows(count: int, num_responses: int = 4) -> list[dict[str, Any]]:
    """Rows as raw UltraFeedback has them: a prompt and rated responses, of different lengths and scores."""
    draw = random.Random(0)

    def words(count: int) -> str:
        return " ".join(draw.choices(["red", "blue", "one", "two", "six"], k=count))

    return [
        {
            "instruction": f"{row} {words(8)}",
            "completions": [
                {"response": f"{n} {words(4 + 2 * n)}", "score": (3 * n + row) % num_responses}
                for n in range(num_responses)
            ],
        }
        for row in range(count)
    ]


RATED = {"prompt": "instruction", "responses": "completions.response", "chosen_if": "highest completions.score"}


def batch_of(examples: list[Example], *, packed: bool = False) -> Batch:
    """A batch of chats or pairs: each in a separate sequence, or all packed into one."""
    collate = collate_pairs if "prompt_ids" in examples[0] else collate_chats
    return collate([examples] if packed else unpacked(examples))


def edited(model: Path, folder: Path, **settings: Any) -> Path:
    """A copy of a model's folder with other settings in config.json."""
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text()) | settings
    (folder / "config.json").write_text(json.dumps(config))
    return folder


# ---- runs


def run_two_ranks(program: str, folder: Path, *words: str) -> None:
    """Run a test file as a program in two processes, whose rank is its first word; with their logs if one fails."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "test",  # Lightning then takes the processes as they are
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    logs = [folder / f"rank{rank}.log" for rank in range(2)]
    processes = []
    for rank, log in enumerate(logs):
        own = os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        command = [sys.executable, program, str(rank), *words]
        processes.append(subprocess.Popen(command, env=own, stdout=log.open("w"), stderr=subprocess.STDOUT))
    try:
        codes = [process.wait(timeout=900) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0, 0], "\n".join(log.read_text()[-6000:] for log in logs)


def fit_batches(module: FineTuningModule, batches: list[Batch], folder: Path, **options: Any) -> SmollitTrainer:
    """Train on these batches for one epoch, without a data module, logs and checkpoints. Returns the trainer."""
    trainer = SmollitTrainer(str(folder), **{"max_epochs": 1, **QUIET, **options})
    trainer.fit(module, DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    return trainer


class Run(NamedTuple):
    """A module, data and a trainer that fit together."""

    trainer: SmollitTrainer
    module: FineTuningModule
    data: UltraChatDataModule | UltraFeedbackDataModule
    folder: Path

    def fit(self, **options: Any) -> "Run":
        """Train."""
        self.trainer.fit(self.module, datamodule=self.data, **options)
        return self


@pytest.fixture
def make_run(tiny_model: Path, cache_dir: Path, tmp_path: Path) -> Callable[..., Run]:
    """make_run([callbacks], kind="dpo", model={...}, data={...}, max_steps=2).fit(): 8 sample rows of at most 48
    tokens, 2 per batch, on the tiny model, with logs and checkpoints in a run folder."""

    def make(
        callbacks: list[Callback] | None = None,
        kind: str = "sft",
        model: dict[str, Any] | None = None,
        folder: str = "run",
        data: dict[str, Any] | None = None,
        **trainer: Any,
    ) -> Run:
        data_class, samples, splits = (
            (UltraChatDataModule, "ultrachat", {"train_split": "train_sft[:8]", "val_split": "test_sft[:4]"})
            if kind == "sft"
            else (
                UltraFeedbackDataModule,
                "ultrafeedback",
                {"train_split": "train_prefs[:8]", "val_split": "test_prefs[:4]"},
            )
        )
        common = {"max_length": 48, "train_batch_size": 2, "val_batch_size": 2}
        options = {"tokenizer_name": str(tiny_model), "cache_dir": str(cache_dir), **common, **splits, **(data or {})}
        module_class = SFTModule if kind == "sft" else DPOModule
        defaults = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False, "log_every_n_steps": 1}
        return Run(
            SmollitTrainer(str(tmp_path / folder), callbacks=callbacks, **{**defaults, **trainer}),
            module_class(**{"model_name": str(tiny_model), "learning_rate": 1e-2, **(model or {})}),
            data_class(**{"dataset": str(SAMPLES / samples), **options}),
            tmp_path / folder,
        )

    return make


# ---- the tiny model, and the real rows


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerBase:
    """The tiny tokenizer that ships with the package: ids 0 <|endoftext|>, 1 <|im_start|>, 2 <|im_end|>."""
    return AutoTokenizer.from_pretrained(TINY)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random 2-layer Llama of hidden size 32, the tiny tokenizer, and ChatML as its template."""
    folder = tmp_path_factory.mktemp("tiny-model")
    config = AutoConfig.from_pretrained(TINY)
    config.hidden_size, config.intermediate_size, config.num_hidden_layers = 32, 64, 2
    config.head_dim, config.num_attention_heads, config.num_key_value_heads = 8, 4, 2
    config.layer_types = None
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    tokenizer.chat_template = (ROOT / "smollit" / "data" / "template" / "chatml.jinja").read_text()
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache of tokenized data for the whole session."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def shared() -> Path:
    """../shared with real rows and tokenizers."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        if os.environ.get("SMOLLIT_REQUIRE_SHARED"):
            pytest.fail(f"{folder} is missing, and SMOLLIT_REQUIRE_SHARED is set")
        pytest.skip(f"{folder} is missing: this test needs its real rows and tokenizers")
    return folder


@pytest.fixture(autouse=True)
def _few_threads() -> Iterator[None]:
    """Tiny models run faster, and the same everywhere, on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _no_process_group_of_earlier_tests() -> Iterator[None]:
    """Lightning leaves its process group open, and the address of it in the environment: a forked process inherits the
    group without its threads, and waits forever."""
    before = dict(os.environ)
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(autouse=True)
def _no_seed_of_earlier_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """`data.seed` follows Lightning's `seed_everything`, which leaves an environment variable behind."""
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Processes exchange reports as UTF-8, and tests of malformed rows log lone surrogates."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report
