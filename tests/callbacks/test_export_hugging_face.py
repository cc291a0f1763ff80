"""ExportHuggingFace: runs that trained to their end are exported, and only those."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging
from transformers import AutoModelForCausalLM

from callbacks import BEMA, ExportHuggingFace
from smollit.commands.export import push as push_module


class At(Callback):
    """Does something at the end of step 1."""

    def __init__(self, action: Callable[[], Any]) -> None:
        self.action = action

    def on_train_batch_end(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
        if trainer.global_step == 1:
            self.action()


def fail() -> None:
    raise RuntimeError("broken")


def embedding(folder: Path) -> torch.Tensor:
    return AutoModelForCausalLM.from_pretrained(folder).get_input_embeddings().weight.detach()


def test_the_trained_weights_are_in_the_runs_folder(make_run: Any) -> None:
    """After 2 steps the export's embedding is the policy's, bit for bit, and no longer the source's."""
    run = make_run([ExportHuggingFace()], max_steps=2).fit()
    found = embedding(run.folder / "export")
    assert torch.equal(found, run.module.policy.model.get_input_embeddings().weight)
    assert not torch.equal(found, embedding(Path(run.module.model_name)))


@pytest.mark.slow
def test_folder_and_dtype_can_be_chosen(make_run: Any, tmp_path: Path) -> None:
    """`output` elsewhere, in bf16; a DPO run exports its policy."""
    output = tmp_path / "deep" / "elsewhere"
    run = make_run([ExportHuggingFace(str(output), "bfloat16")], kind="dpo", max_steps=1).fit()
    policy = run.module.policy.model.get_input_embeddings().weight
    assert torch.equal(embedding(output), policy.to(torch.bfloat16))
    assert not (run.folder / "export").exists()


# case: A3
@pytest.mark.slow
def test_the_best_checkpoint_can_be_exported(make_run: Any) -> None:
    """By the largest loss of 2 steps, the best is step 1: its embedding is exported, not that of the end. Without
    `keep_best`, the run is refused before its first step."""
    best = {"callbacks": [ExportHuggingFace(ckpt_path="best")], "max_steps": 2, "val_every_n_steps": 1}
    run = make_run(**best, keep_best="max:val/loss").fit()
    found, kept = embedding(run.folder / "export"), torch.load(run.folder / "checkpoints/best.ckpt", weights_only=True)
    assert kept["global_step"] == 1 and kept["best"]["metric"] == "val/loss"
    assert torch.equal(found, kept["state_dict"]["policy.model.model.embed_tokens.weight"])
    assert not torch.equal(found, run.module.policy.model.get_input_embeddings().weight)
    with pytest.raises(ValueError, match=r"needs `trainer\.keep_best`"):
        make_run(**best, folder="other").fit()


@pytest.mark.slow
def test_resuming_a_finished_run_exports(make_run: Any) -> None:
    """max_steps is reached already, so nothing is trained: same weights, exported by the second start."""
    first = make_run([], max_steps=2).fit()
    assert not (first.folder / "export").exists()
    run = make_run([ExportHuggingFace()], max_steps=2).fit(ckpt_path="last")
    assert run.trainer.global_step == 2
    assert torch.equal(embedding(run.folder / "export"), first.module.policy.model.get_input_embeddings().weight)


@pytest.mark.parametrize("average", [lambda: EMAWeightAveraging(decay=0.5), lambda: BEMA(1)])
@pytest.mark.slow
def test_a_finished_run_exports_its_average(make_run: Any, average: Any) -> None:
    """At the end of training and at a second start, which trains nothing: the weights of last.ckpt."""
    for _ in range(2):
        run = make_run([average(), ExportHuggingFace()], max_steps=2).fit(ckpt_path="last")
        saved = torch.load(run.folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        assert torch.equal(embedding(run.folder / "export"), saved["policy.model.model.embed_tokens.weight"])


def test_last_ckpt_is_saved_before_the_export_begins(make_run: Any, tmp_path: Path) -> None:
    """An export that fails, here since a file is in the way of its folder by then, costs no training."""
    output = tmp_path / "in" / "the" / "way"
    block = At(lambda: (tmp_path / "in").write_text("a file"))
    run = make_run([block, ExportHuggingFace(str(output))], max_steps=2)
    with pytest.raises(ValueError, match=r"the export folder .* can't be written"):
        run.fit()
    checkpoint = torch.load(run.folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 2


@pytest.mark.parametrize(
    ("action", "error"),
    [(fail, RuntimeError), (lambda: os.kill(os.getpid(), signal.SIGTERM), SystemExit)],
    ids=["fault", "signal"],
)
def test_a_stopped_run_exports_nothing(make_run: Any, action: Callable[[], Any], error: type) -> None:
    """Stopped at step 1 of 3."""
    run = make_run([At(action), ExportHuggingFace()], max_steps=3)
    with pytest.raises(error):
        run.fit()
    assert not (run.folder / "export").exists()


def test_a_folder_that_must_not_be_replaced_is_refused_before_the_first_step(make_run: Any, tmp_path: Path) -> None:
    """Not after hours of training."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    run = make_run([ExportHuggingFace(str(tmp_path / "mine"))], max_steps=2)
    with pytest.raises(ValueError, match=r"notes\.txt"):
        run.fit()
    assert run.trainer.global_step == 0
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"


def test_fast_dev_run_leaves_no_export(make_run: Any) -> None:
    """One batch that tries the code out must not replace an earlier export."""
    run = make_run([ExportHuggingFace()], fast_dev_run=True).fit()
    assert not (run.folder / "export").exists()


class Hub:
    """Stands in for the Hub: keeps what is uploaded, or refuses it."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.made: list[tuple[str, bool]] = []

    def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> None:
        if name == "org/forbidden":
            raise RuntimeError("403 Forbidden: you are not logged in")
        self.made.append((name, private))

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> Any:
        self.files |= {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")


# promise: push
@pytest.mark.slow
def test_the_export_is_pushed_with_a_card_that_names_the_repository(
    make_run: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """All files of the folder, in a private repository. A refusal is a sentence, and the folder stays."""
    hub = Hub()
    monkeypatch.setattr(push_module, "HfApi", lambda: hub)
    monkeypatch.setattr(push_module.constants, "HF_HUB_OFFLINE", False)
    with caplog.at_level("INFO", "smollit"):
        run = make_run([ExportHuggingFace(push_to_hub="org/model")], max_steps=1).fit()
    assert hub.made == [("org/model", True)] and "pushed to https://hub/org/model/commit/1" in caplog.text
    assert hub.files == {path.name: path.read_bytes() for path in (run.folder / "export").iterdir()}
    assert b'model="org/model"' in hub.files["README.md"]
    again = make_run([ExportHuggingFace(push_to_hub="org/forbidden")], max_steps=1, folder="again")
    with pytest.raises(ValueError, match=r"could not be pushed to org/forbidden: 403 Forbidden.*hf auth login"):
        again.fit()
    assert (again.folder / "export" / "model.safetensors").is_file()


@pytest.mark.parametrize(("name", "said"), [("org/model", "HF_HUB_OFFLINE is set"), ("a b/c/d", "such as org/model")])
def test_a_push_that_can_not_work_is_refused_before_the_first_step(make_run: Any, name: str, said: str) -> None:
    """The tests are offline."""
    run = make_run([ExportHuggingFace(push_to_hub=name)], max_steps=1)
    with pytest.raises(ValueError, match=said):
        run.fit()
    assert run.trainer.global_step == 0
