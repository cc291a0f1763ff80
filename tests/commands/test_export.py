"""An exported folder: the same model, that stops and chats; exports never replace anything else."""

import copy
import hashlib
import json
import shutil
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from smollit.commands.certificate import FILE
from smollit.commands.chat.speaker import Speaker
from smollit.commands.export.export import ExportDtype, export, finish_tokenizer
from smollit.commands.export.folder import check_output
from smollit.commands.export.run import TrainedRun
from smollit.commands.verify import verify
from smollit.data.batching.collate import collate_chats, collate_prompts, unpacked
from smollit.data.template.template import ChatTemplate, load_template
from smollit.main import main
from smollit.models import CausalLM
from smollit.models.pretrained import load_config
from smollit.modules import SFTModule
from smollit.training.logs.table import read_table
from tests.conftest import edited

END_OF_TEXT, TURN_END = 0, 2
SAMPLES = Path(__file__).parents[2] / "smollit" / "data" / "samples" / "ultrachat"
CHAT = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Good day."}]


def template_of(folder: Path, choice: str = "auto") -> ChatTemplate:
    return load_template(AutoTokenizer.from_pretrained(folder), choice)


def write(source: Path, output: Path, *, template: ChatTemplate | None = None, **options: Any) -> Path:
    """The export of a policy that is still its source."""
    export(CausalLM(str(source)), str(source), template=template or template_of(source), output=output, **options)
    return output


def stored(folder: Path) -> dict[str, torch.Tensor]:
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def sha256(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


@pytest.fixture
def exported(tiny_model: Path, tmp_path: Path) -> tuple[CausalLM, Path]:
    """A policy with weights that no file holds, and its export."""
    policy = CausalLM(str(tiny_model))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    export(policy, str(tiny_model), template=template_of(tiny_model), output=tmp_path / "out")
    return policy, tmp_path / "out"


# ---- weights


# case: export-02
def test_tied_weights_are_stored_once_and_logits_are_the_policys(exported: tuple[CausalLM, Path]) -> None:
    """Tied: embed_tokens is the head too. The folder's logits = hidden @ embedding.T."""
    policy, folder = exported
    assert "lm_head.weight" not in stored(folder)
    reloaded = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert reloaded.config.tie_word_embeddings is True
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        model = policy.eval().model
        hidden = model.base_model(input_ids=ids).last_hidden_state
        expected = hidden @ model.get_input_embeddings().weight.T
        torch.testing.assert_close(reloaded(ids).logits, expected, rtol=0, atol=1e-6)


# case: export-02
def test_an_untied_head_is_stored_by_itself(tiny_model: Path, tmp_path: Path) -> None:
    """tie_word_embeddings false: two tensors, and the exported head is the source's own, not the embedding."""
    config = AutoConfig.from_pretrained(tiny_model)
    config.tie_word_embeddings = False
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path / "untied")
    found = stored(write(tmp_path / "untied", tmp_path / "out", template=template_of(tiny_model)))
    assert torch.equal(found["lm_head.weight"], model.lm_head.weight)
    assert not torch.equal(found["lm_head.weight"], found["model.embed_tokens.weight"])


# case: export-05
@pytest.mark.parametrize(
    ("base", "choice", "expected"),
    [
        (torch.float32, "auto", torch.float32),
        (torch.float32, "bfloat16", torch.bfloat16),
        (torch.bfloat16, "auto", torch.bfloat16),
        (torch.bfloat16, "float32", torch.float32),
    ],
)
def test_tensors_and_config_have_the_dtype_asked_for(
    tiny_model: Path, tmp_path: Path, base: torch.dtype, choice: ExportDtype, expected: torch.dtype
) -> None:
    """The policy trains in fp32 in all four; auto is the source's dtype, and config.json names that of the tensors."""
    AutoModelForCausalLM.from_pretrained(tiny_model, dtype=base).save_pretrained(tmp_path / "base")
    folder = write(tmp_path / "base", tmp_path / "out", template=template_of(tiny_model), dtype=choice)
    assert {tensor.dtype for tensor in stored(folder).values()} == {expected}
    assert json.loads((folder / "config.json").read_text())["dtype"] == str(expected).removeprefix("torch.")


def test_the_dropout_of_training_does_not_reach_the_export(tiny_model: Path, tmp_path: Path) -> None:
    """The policy was trained with dropout 0.3, and the source has 0: the next stage starts from the source's."""
    policy = CausalLM(str(tiny_model), dropout=0.3, gradient_checkpointing=True)
    export(policy, str(tiny_model), template=template_of(tiny_model), output=tmp_path / "out")
    assert load_config(str(tmp_path / "out")).attention_dropout == 0.0


# ---- where generation stops


# promise: turn-end
# case: export-01, mask-04
def test_generation_stops_at_the_turn_end_and_at_the_sources_eos(
    exported: tuple[CausalLM, Path], tmp_path: Path
) -> None:
    """ChatML on a tokenizer with eos 0: stops are [2, 0]; config and tokenizer agree; padding is not the turn end.

    SFT then DPO: the second export's source stops at [2, 0], and so does the second export.
    """
    _, folder = exported
    generation, config = GenerationConfig.from_pretrained(folder), AutoConfig.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert generation.eos_token_id == [TURN_END, END_OF_TEXT] and generation.stop_strings is None
    assert config.eos_token_id == tokenizer.eos_token_id == TURN_END
    assert generation.pad_token_id == config.pad_token_id == tokenizer.pad_token_id == END_OF_TEXT
    assert generation.bos_token_id == config.bos_token_id == tokenizer.bos_token_id
    assert config.use_cache is True
    again = GenerationConfig.from_pretrained(write(folder, tmp_path / "again"))
    assert again.eos_token_id == [TURN_END, END_OF_TEXT]


# case: export-01
def test_a_model_trained_to_end_its_turn_stops_there(tiny_model: Path, tmp_path: Path) -> None:
    """60 steps on one chat; greedy generation with the folder's own settings gives `Good day.` + id 2, and no more."""
    policy, template = CausalLM(str(tiny_model)), template_of(tiny_model)
    prompt, response = template.encode([template.prompt_text(CHAT[:1]), "Good day.<|im_end|>"])
    spans = [len(prompt), len(prompt) + len(response)]
    batch = collate_chats(unpacked([{"input_ids": prompt + response, "spans": spans, "row": 0}]))
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        (-policy(batch).sums / batch.num_loss_tokens).sum().backward()
        optimizer.step()
    export(policy, str(tiny_model), template=template, output=tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    inputs = tokenizer.apply_chat_template(CHAT[:1], add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**inputs, max_new_tokens=30)[0, inputs["input_ids"].shape[1] :]
    assert output.tolist() == response and output[-1] == TURN_END


# case: export-01, template-04
def test_an_end_marker_of_several_tokens_becomes_a_stop_string(tiny_model: Path, tmp_path: Path) -> None:
    """`</s>` is no token of ChatML's tokenizer: no single id can stop it, so the text does, beside the eos 0.

    transformers' `generate` and `pipeline` refuse stop strings in generation settings: the card's code gives them.
    """
    template = template_of(tiny_model, "article")
    assert len(template.encode(["</s>"])[0]) > 1
    folder = write(tiny_model, tmp_path / "out", template=template)
    generation = GenerationConfig.from_pretrained(folder)
    assert (generation.stop_strings, generation.eos_token_id) == (None, [END_OF_TEXT])
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    exec(code.replace('"out"', repr(str(folder))), {})
    assert Speaker.load(str(folder)).stop_texts() == ["</s>"]
    assert all(check.ok for check in verify(folder))
    batch = collate_prompts(unpacked([{"prompt_ids": [5, 6, 7], "row": 0}]))
    assert len(CausalLM(str(folder)).eval().generate(batch, 4, template.stop_ids())[0]) <= 4


# ---- the tokenizer


# case: template-04
def test_a_template_that_the_tokenizer_lacked_is_kept(tiny_tokenizer: Any, tiny_model: Path, tmp_path: Path) -> None:
    """The tokenizer as shipped has no template: ChatML is assumed, and the exported one renders the same without it."""
    assert tiny_tokenizer.chat_template is None
    template = load_template(tiny_tokenizer, "auto")
    again = AutoTokenizer.from_pretrained(write(tiny_model, tmp_path / "out", template=template))
    expected = "<|im_start|>user\nHello?<|im_end|>\n<|im_start|>assistant\nGood day.<|im_end|>\n"
    assert again.apply_chat_template(CHAT, tokenize=False) == expected
    settings = json.loads((tmp_path / "out/tokenizer_config.json").read_text())
    assert again.chat_template == template.source == settings["chat_template"]


def test_the_runs_own_tokenizer_is_not_changed(tiny_model: Path, tmp_path: Path) -> None:
    """The export's eos is 2; the run continues with eos 0, and a second export is equal file by file."""
    template = template_of(tiny_model)
    before = (template.stop_ids(), template.tokenizer.eos_token_id, template.tokenizer.pad_token_id)
    first, second = (write(tiny_model, tmp_path / name / "out", template=template) for name in ("first", "second"))
    assert (template.stop_ids(), template.tokenizer.eos_token_id, template.tokenizer.pad_token_id) == before
    assert {file.name: file.read_bytes() for file in first.iterdir()} == {
        file.name: file.read_bytes() for file in second.iterdir()
    }
    template.tokenizer.pad_token = "<|im_start|>"  # a distinct padding token stays
    assert finish_tokenizer(template).pad_token_id == 1


# ---- what it may replace


def test_an_earlier_export_is_replaced(exported: tuple[CausalLM, Path], tiny_model: Path) -> None:
    """Other weights, same folder: new hash, nothing is left beside it, and the marker names exactly its files."""
    _, folder = exported
    before = sha256(folder)
    write(tiny_model, folder)
    assert sha256(folder) != before
    assert [path.name for path in folder.parent.iterdir()] == ["out"]
    assert {FILE, *json.loads((folder / FILE).read_text())["files"]} == {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["notes.txt", "config.json", "checkpoints/last.ckpt", "README.md", ""])
def test_a_folder_with_other_things_is_refused(
    exported: tuple[CausalLM, Path], tiny_model: Path, tmp_path: Path, name: str
) -> None:
    """A config.json as a source model's folder has it; a README.md in an earlier export; a file in its place."""
    output = exported[1] if name == "README.md" else tmp_path / "other"
    path = output / name if name else output
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")
    with pytest.raises(ValueError, match=rf"{name.split('/')[0] or 'a file'}.*empty or new"):
        write(tiny_model, output)
    assert path.read_text() == "mine"
    with pytest.raises(ValueError, match="no earlier export wrote"):  # the base model, by its own fine-tuned copy
        write(tiny_model, tiny_model)


# promise: export
@pytest.mark.parametrize(
    ("fault", "said"), [("weights", "does not read back"), ("template", "renders"), ("tokens", "other tokens")]
)
def test_an_export_that_reads_back_wrong_is_reported_and_the_old_one_stays(
    exported: tuple[CausalLM, Path], tiny_model: Path, monkeypatch: pytest.MonkeyPatch, fault: str, said: str
) -> None:
    """transformers writes one weight off by 1, another template, or one token more: nothing is replaced."""
    before = sha256(exported[1])
    save_model, save_tokenizer = PreTrainedModel.save_pretrained, PreTrainedTokenizerBase.save_pretrained

    def bad_model(self: PreTrainedModel, folder: Path, **options: Any) -> Any:
        other = copy.deepcopy(self)
        with torch.no_grad():
            other.get_input_embeddings().weight[3, 3] += 1
        return save_model(other, folder, **options)

    def bad_tokenizer(self: PreTrainedTokenizerBase, folder: Path, **options: Any) -> Any:
        other = copy.deepcopy(self)
        if fault == "template":
            other.chat_template = "{{ messages[0]['content'] }}"
        else:
            other.add_tokens(["2 + 2"])
        return save_tokenizer(other, folder, **options)

    if fault == "weights":
        monkeypatch.setattr(PreTrainedModel, "save_pretrained", bad_model)
    else:
        monkeypatch.setattr(PreTrainedTokenizerBase, "save_pretrained", bad_tokenizer)
    with pytest.raises(RuntimeError, match=said):
        write(tiny_model, exported[1])
    assert sha256(exported[1]) == before
    assert [path.name for path in exported[1].parent.iterdir()] == ["out"]


@pytest.mark.parametrize(("factor", "is_refused"), [(1.0001, False), (100.0, True)])
def test_logits_that_read_back_may_differ_by_rounding(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float, is_refused: bool
) -> None:
    """The same weights, and another epsilon of the norms in config.json: as after a product in other memory, or not."""
    save = PreTrainedModel.save_pretrained

    def other_config(self: PreTrainedModel, folder: Path, **options: Any) -> Any:
        other = copy.deepcopy(self)
        other.config.rms_norm_eps *= factor
        return save(other, folder, **options)

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", other_config)
    with pytest.raises(RuntimeError, match="gives other logits") if is_refused else nullcontext():
        write(tiny_model, tmp_path / "out")


# ---- from checkpoints


@pytest.fixture
def config(tiny_model: Path, tmp_path: Path, cache_dir: Path) -> list[str]:
    """A run on four chats, as command line arguments."""
    return [
        "--model=smollit.modules.SFTModule",
        f"--model.model_name={tiny_model}",
        "--model.learning_rate=0.01",
        "--data=smollit.data.UltraChatDataModule",
        f"--data.dataset={SAMPLES}",
        "--data.train_split=train_sft[:4]",
        "--data.val_split=null",
        "--data.max_length=48",
        "--data.train_batch_size=2",
        f"--data.cache_dir={cache_dir}",
        "--trainer.accelerator=cpu",
        f"--trainer.default_root_dir={tmp_path / 'run'}",
        "--trainer.enable_progress_bar=false",
    ]


# case: export-04
@pytest.mark.slow
def test_full_and_weights_only_checkpoints_give_the_same_file(config: list[str], tmp_path: Path) -> None:
    """last.ckpt, and the same without optimizer: one SHA-256, and it is not that of the source's weights."""
    fitted = main(["fit", *config, "--trainer.max_steps=2"])
    slim = tmp_path / "slim.ckpt"
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    torch.save({"state_dict": state}, slim)
    main(["export", *config])  # the newest checkpoint, to the run's folder
    main(["export", *config, f"--ckpt_path={slim}", f"--output={tmp_path / 'slim'}", "--dtype=float32"])
    assert sha256(tmp_path / "run" / "export") == sha256(tmp_path / "slim")
    found = stored(tmp_path / "slim")["model.embed_tokens.weight"]
    assert torch.equal(found, fitted.model.policy.state_dict()["model.model.embed_tokens.weight"])
    source = AutoModelForCausalLM.from_pretrained(fitted.model.model_name)
    assert not torch.equal(found, source.get_input_embeddings().weight)


# case: export-04
@pytest.mark.slow
def test_a_folder_of_shards_gives_the_same_file(config: list[str], tiny_model: Path, tmp_path: Path) -> None:
    """torch.distributed.checkpoint writes {"state_dict": ...} in shards, as Lightning's sharded strategies do."""
    module = SFTModule(str(tiny_model))
    module.configure_model()
    state = {name: tensor + 1 for name, tensor in module.state_dict().items() if name.startswith("policy.")}
    torch.save({"state_dict": state}, tmp_path / "whole.ckpt")
    torch.distributed.checkpoint.save({"state_dict": state}, checkpoint_id=str(tmp_path / "shards.ckpt"))
    for name in ("whole", "shards"):
        main(["export", *config, f"--ckpt_path={tmp_path / name}.ckpt", f"--output={tmp_path / name}"])
    assert sha256(tmp_path / "whole") == sha256(tmp_path / "shards")
    embedding = stored(tmp_path / "whole")["model.embed_tokens.weight"]
    assert torch.equal(embedding, state["policy.model.model.embed_tokens.weight"])


# case: export-04
def test_a_checkpoint_of_another_model_is_refused(config: list[str], tmp_path: Path) -> None:
    """Weights of hidden size 16 do not fit a model of 32: one sentence with the name of both."""
    state = {"policy.model.model.embed_tokens.weight": torch.zeros(2048, 16)}
    torch.save({"state_dict": state}, tmp_path / "other.ckpt")
    with pytest.raises(SystemExit, match=r"other\.ckpt.*was not made from"):
        main(["export", *config, f"--ckpt_path={tmp_path / 'other.ckpt'}", f"--output={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


# promise: killed-export
# case: B13
def test_what_killed_exports_left_is_cleaned_at_the_next_start_and_not_that_of_a_running_one(
    exported: tuple[CausalLM, Path], tiny_model: Path
) -> None:
    """`.out-xxxxxxxx` goes and `.out-dpo-xxxxxxxx`, of another folder, stays; a lock that is held keeps both.

    Killed while it replaced the folder: the old export lies in `.out-old`, and comes back.
    """
    output = exported[1]
    left, other = output.with_name(".out-ab12cd_9"), output.with_name(".out-dpo-ab12cd_9")
    for folder in (left, other):
        shutil.copytree(output, folder)
    with FileLock(output.with_name(".out.lock")):
        check_output(output)
        assert left.exists()
        with pytest.raises(ValueError, match="another process is exporting"):
            write(tiny_model, output)
    output.rename(output.with_name(".out-old"))
    check_output(output)
    assert sorted(path.name for path in output.parent.iterdir()) == [".out-dpo-ab12cd_9", "out"]
    assert torch.equal(stored(output)["model.norm.weight"], exported[0].state_dict()["model.model.norm.weight"])


FULL = "No space left on device"


@pytest.mark.parametrize(
    ("writer", "error"),
    [
        (PreTrainedModel, OSError(28, FULL)),
        (PreTrainedModel, SafetensorError(FULL)),
        (PreTrainedTokenizerBase, Exception(f"{FULL} (os error 28)")),
    ],
)
def test_a_full_disk_is_a_sentence_and_the_old_export_stays(
    exported: tuple[CausalLM, Path], tiny_model: Path, monkeypatch: pytest.MonkeyPatch, writer: type, error: Exception
) -> None:
    """The disk fills up while the weights, or the tokenizer, are written: nothing is replaced, and nothing is left."""

    def fail(*args: Any, **options: Any) -> None:
        raise error

    before = sha256(exported[1])
    monkeypatch.setattr(writer, "save_pretrained", fail)
    with pytest.raises(ValueError, match=r"export to .* failed: .*No space left"):
        write(tiny_model, exported[1])
    assert sha256(exported[1]) == before and [path.name for path in exported[1].parent.iterdir()] == ["out"]


def test_the_card_has_the_settings_of_the_start_that_made_the_weights(tmp_path: Path) -> None:
    """Rate 1 to step 4, rate 2 to step 8, and the first settings, which write no new file, to step 12."""
    for name, rate in {"config.yaml": 1.0, "config-resume-1.yaml": 2.0}.items():
        (tmp_path / name).write_text(yaml.safe_dump({"model": {"learning_rate": rate}}))
    files = ("config.yaml", "config-resume-1.yaml", "config.yaml")
    starts = [{"step": step, "config": name} for step, name in zip((0, 4, 8), files, strict=True)]
    (tmp_path / "environment.json").write_text(json.dumps(starts))
    rates = [TrainedRun(tmp_path, step=step).settings()["model"]["learning_rate"] for step in (2, 4, 5, 8, 9, None)]
    assert rates == [1, 1, 2, 2, 1, 1]


# case: E3
def test_generation_settings_of_the_source_are_kept_where_valid_and_said(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without `do_sample`, transformers refuses to save a temperature: it is left out; the penalty is valid."""
    source = edited(tiny_model, tmp_path / "source")
    settings = {"temperature": 0.7, "repetition_penalty": 1.3, "max_new_tokens": 50}
    (source / "generation_config.json").write_text(json.dumps(settings))
    with caplog.at_level("INFO", "smollit"):
        folder = write(source, tmp_path / "out")
    found = json.loads((folder / "generation_config.json").read_text())
    assert (found["repetition_penalty"], found["max_new_tokens"]) == (1.3, 50) and "temperature" not in found
    assert "kept from the source: max_new_tokens 50, repetition_penalty 1.3" in caplog.text
    assert "without effect are left out: temperature" in caplog.text


# promise: certificate
# case: E4
@pytest.mark.slow
def test_an_export_has_a_model_card_and_a_certificate(config: list[str], tiny_model: Path, tmp_path: Path) -> None:
    """Base and licence of the source's own card, counts of data_report.json, the points of metrics.csv, settings.

    Absolute folders of this machine are in neither file, and `fit` and `export` write the same.
    """
    source = edited(tiny_model, tmp_path / "source")
    (source / "README.md").write_text("---\nlicense: mit\nbase_model: org/base\n---\n# Source\n")
    words = [word for word in config if "model_name" not in word and "val_split" not in word]
    words += [f"--model.model_name={source}", "--data.val_split=test_sft[:2]", "--trainer.max_steps=2"]
    main(["fit", *words, "--trainer.val_every_n_steps=1", "--trainer.callbacks+=callbacks.ExportHuggingFace"])
    main(["export", *words, f"--output={tmp_path / 'again' / 'export'}"])
    first, second = (tmp_path / name / "export" for name in ("run", "again"))
    card = (first / "README.md").read_text()
    assert card == (second / "README.md").read_text() and str(tmp_path) not in card
    metadata = yaml.safe_load(card.split("---")[1])
    assert (metadata["license"], metadata["base_model"], metadata["tags"]) == ("mit", "org/base", ["smollit", "sft"])
    assert metadata["library_name"] == "transformers" and metadata["pipeline_tag"] == "text-generation"
    counts = json.loads((tmp_path / "run" / "data_report.json").read_text())
    train = counts["train"]
    assert (
        f"| train | 4 | {train['kept']} | {train['truncated']} | {train['tokens']} | {train['loss_tokens']} |" in card
    )
    points = [row for row in read_table(tmp_path / "run" / "metrics.csv") if row["val/loss"]]
    assert len(points) == 2 and all(f"| {row['step']} | {float(row['val/loss']):.4f} |" in card for row in points)
    assert "learning_rate: 0.01" in card and f"torch {version('torch')}" in card
    certificates = [json.loads((folder / FILE).read_text()) for folder in (first, second)]
    assert [each["step"] for each in certificates] == [2, 2]
    assert set(certificates[0]["data"]["content"]) > {"data.dataset", "data.tokenizer_name", "data.chat_template"}
    assert certificates[0] == certificates[1] and str(tmp_path) not in json.dumps(certificates)
