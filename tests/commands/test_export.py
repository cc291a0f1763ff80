"""What an exported folder is: the same model, that stops, chats, and never takes the place of something else."""

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

import smollit.commands.export as tool
from smollit.commands.export import MARKER, ExportDtype, export, finish_tokenizer
from smollit.data.batching.collate import collate_chats, collate_prompts, unpacked
from smollit.data.template.template import ChatTemplate, load_template
from smollit.main import main
from smollit.models import CausalLM
from smollit.models.pretrained import load_config
from smollit.modules import SFTModule

END_OF_TEXT, TURN_END = 0, 2
SAMPLES = Path(tool.__file__).parent.parent / "data" / "samples" / "ultrachat"
CHAT = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Good day."}]


def module_of(model_name: Path, **options: Any) -> Any:
    """A policy and the name of the model that it began as."""
    return SimpleNamespace(policy=CausalLM(str(model_name), **options), model_name=str(model_name))


def write(module: Any, template: ChatTemplate, output: Path, dtype: ExportDtype = "auto") -> None:
    export(module.policy, module.model_name, template=template, output=output, dtype=dtype)


def template_of(folder: Path, choice: str = "auto") -> ChatTemplate:
    return load_template(AutoTokenizer.from_pretrained(folder), choice)


def stored(folder: Path) -> dict[str, torch.Tensor]:
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def sha256(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


@pytest.fixture
def exported(tiny_model: Path, tmp_path: Path) -> tuple[Any, Path]:
    """A module with weights that no file holds, and its export."""
    module = module_of(tiny_model)
    with torch.no_grad():
        for parameter in module.policy.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    write(module, template_of(tiny_model), tmp_path / "out")
    return module, tmp_path / "out"


# case: export-02
def test_tied_weights_are_stored_once_and_logits_are_the_policys(exported: tuple[Any, Path]) -> None:
    """Tied: embed_tokens stands for the head too. The folder's logits at the last token = hidden @ embedding.T."""
    module, folder = exported
    names = set(stored(folder))
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names
    reloaded = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert reloaded.config.tie_word_embeddings is True
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        policy = module.policy.eval().model
        hidden = policy.base_model(input_ids=ids).last_hidden_state
        torch.testing.assert_close(
            reloaded(ids).logits, hidden @ policy.get_input_embeddings().weight.T, rtol=0, atol=1e-6
        )


# case: export-02
def test_an_untied_head_is_stored_by_itself(tiny_model: Path, tmp_path: Path) -> None:
    """tie_word_embeddings false: two tensors, and the exported head is the trained one, not the embedding."""
    config = AutoConfig.from_pretrained(tiny_model)
    config.tie_word_embeddings = False
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "untied")
    module = module_of(tmp_path / "untied")
    write(module, template_of(tiny_model), tmp_path / "out")
    found = stored(tmp_path / "out")
    assert torch.equal(found["lm_head.weight"], module.policy.state_dict()["model.lm_head.weight"])
    assert not torch.equal(found["lm_head.weight"], found["model.embed_tokens.weight"])


# case: export-01, mask-04
def test_generation_stops_at_the_turn_end_and_at_the_sources_eos(exported: tuple[Any, Path]) -> None:
    """ChatML on a tokenizer with eos 0: stops are [2, 0]; config and tokenizer agree; padding is not the turn end."""
    _, folder = exported
    generation, config = GenerationConfig.from_pretrained(folder), AutoConfig.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert generation.eos_token_id == [TURN_END, END_OF_TEXT]
    assert generation.stop_strings is None
    assert config.eos_token_id == tokenizer.eos_token_id == TURN_END
    assert generation.pad_token_id == config.pad_token_id == tokenizer.pad_token_id == END_OF_TEXT
    assert generation.bos_token_id == config.bos_token_id == tokenizer.bos_token_id
    assert config.use_cache is True


# case: export-01
def test_a_model_trained_to_end_its_turn_stops_there(tiny_model: Path, tmp_path: Path) -> None:
    """60 steps on one chat; greedy generation with the folder's own settings gives `Good day.` + id 2, and no more."""
    module, template = module_of(tiny_model), template_of(tiny_model)
    prompt, answer = template.encode([template.prompt_text(CHAT[:1]), "Good day.<|im_end|>"])
    spans = [len(prompt), len(prompt) + len(answer)]
    batch = collate_chats(unpacked([{"input_ids": prompt + answer, "spans": spans, "row": 0}]))
    optimizer = torch.optim.Adam(module.policy.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        (-module.policy(batch).sums / batch.num_loss_tokens).sum().backward()
        optimizer.step()
    write(module, template, tmp_path / "out")
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tmp_path / "out"),
        AutoTokenizer.from_pretrained(tmp_path / "out"),
    )
    inputs = tokenizer.apply_chat_template(CHAT[:1], add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**inputs, max_new_tokens=30)[0, inputs["input_ids"].shape[1] :]
    assert output.tolist() == answer
    assert output[-1] == TURN_END


# case: export-01, template-04
def test_an_end_marker_of_several_tokens_becomes_a_stop_string(tiny_model: Path, tmp_path: Path) -> None:
    """`</s>` is no token of ChatML's tokenizer: no single id can stop it, so the text does, beside the eos 0."""
    template = template_of(tiny_model, "article")
    assert len(template.encode(["</s>"])[0]) > 1
    write(module_of(tiny_model), template, tmp_path / "out")
    generation = GenerationConfig.from_pretrained(tmp_path / "out")
    assert generation.stop_strings == ["</s>"]
    assert generation.eos_token_id == [END_OF_TEXT]


# case: export-01
def test_the_export_of_an_export_still_stops_at_both(exported: tuple[Any, Path], tmp_path: Path) -> None:
    """SFT then DPO: the second export's source stops at [2, 0], and so does the second export."""
    _, first = exported
    write(module_of(first), template_of(first), tmp_path / "second")
    assert GenerationConfig.from_pretrained(tmp_path / "second").eos_token_id == [TURN_END, END_OF_TEXT]


# case: export-01
def test_an_export_with_stop_strings_can_be_trained_and_asked_again(tiny_model: Path, tmp_path: Path) -> None:
    """transformers' generate refuses stop strings without a tokenizer: CausalLM must not hand them on."""
    template = template_of(tiny_model, "article")
    write(module_of(tiny_model), template, tmp_path / "out")
    batch = collate_prompts(unpacked([{"prompt_ids": [5, 6, 7], "row": 0}]))
    answers = CausalLM(str(tmp_path / "out")).eval().generate(batch, 4, template.stop_ids())
    assert len(answers[0]) <= 4


# case: template-04
def test_a_template_that_the_tokenizer_lacked_is_kept(tiny_tokenizer: Any, tiny_model: Path, tmp_path: Path) -> None:
    """The tokenizer as shipped has no template: ChatML is assumed, and the exported one renders the same by itself."""
    assert tiny_tokenizer.chat_template is None
    template = load_template(tiny_tokenizer, "auto")
    write(module_of(tiny_model), template, tmp_path / "out")
    again = AutoTokenizer.from_pretrained(tmp_path / "out")
    expected = "<|im_start|>user\nHello?<|im_end|>\n<|im_start|>assistant\nGood day.<|im_end|>\n"
    assert again.apply_chat_template(CHAT, tokenize=False) == expected
    assert again.chat_template == template.source


def test_the_runs_own_tokenizer_is_not_changed(tiny_model: Path, tmp_path: Path) -> None:
    """The export's eos is 2; the run goes on with eos 0, and a second export says the same as the first."""
    template = template_of(tiny_model)
    before = (template.stop_ids(), template.tokenizer.eos_token_id, template.tokenizer.pad_token_id)
    for name in ("first", "second"):
        write(module_of(tiny_model), template, tmp_path / name)
    assert (template.stop_ids(), template.tokenizer.eos_token_id, template.tokenizer.pad_token_id) == before
    for file in sorted((tmp_path / "first").iterdir()):
        assert file.read_bytes() == (tmp_path / "second" / file.name).read_bytes()


def test_a_tokenizers_own_padding_is_kept(tiny_tokenizer: PreTrainedTokenizerBase, tiny_model: Path) -> None:
    """pad 1 stays 1."""
    template = template_of(tiny_model)
    template.tokenizer.pad_token = "<|im_start|>"
    assert finish_tokenizer(template).pad_token_id == 1


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
    module = module_of(tmp_path / "base")
    assert next(module.policy.parameters()).dtype == torch.float32
    write(module, template_of(tiny_model), tmp_path / "out", choice)
    assert {tensor.dtype for tensor in stored(tmp_path / "out").values()} == {expected}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == str(expected).removeprefix("torch.")


def test_the_dropout_of_training_does_not_reach_the_export(tiny_model: Path, tmp_path: Path) -> None:
    """dropout 0.3 is how the policy was trained, and the source says 0: the next stage starts from the source's."""
    write(module_of(tiny_model, dropout=0.3, gradient_checkpointing=True), template_of(tiny_model), tmp_path / "out")
    assert load_config(str(tmp_path / "out")).attention_dropout == 0.0


# ---- what it may replace


def test_an_earlier_export_is_replaced(exported: tuple[Any, Path], tiny_model: Path) -> None:
    """Other weights, same folder: new hash, and nothing is left beside it."""
    _, folder = exported
    before = sha256(folder)
    write(module_of(tiny_model), template_of(tiny_model), folder)
    assert sha256(folder) != before
    assert [path.name for path in folder.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("name", ["notes.txt", "config.json", "checkpoints/last.ckpt"])
def test_a_folder_with_other_things_is_refused(tiny_model: Path, tmp_path: Path, name: str) -> None:
    """Even one that has a config.json, as a source model's or a project's folder has."""
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(ValueError, match=rf"{name.split('/')[0]}.*empty or new"):
        write(module_of(tiny_model), template_of(tiny_model), tmp_path / "out")
    assert path.read_text() == "mine"


def test_an_export_with_a_file_of_the_users_is_refused(exported: tuple[Any, Path], tiny_model: Path) -> None:
    """A README.md written into an earlier export would be lost."""
    _, folder = exported
    before = sha256(folder)
    (folder / "README.md").write_text("mine")
    with pytest.raises(ValueError, match=r"README\.md"):
        write(module_of(tiny_model), template_of(tiny_model), folder)
    assert sha256(folder) == before


def test_the_source_models_folder_is_refused(tiny_model: Path) -> None:
    """`output` = `model_name` would replace the base model by its own fine-tuned copy."""
    before = sha256(tiny_model)
    with pytest.raises(ValueError, match="not an earlier export"):
        write(module_of(tiny_model), template_of(tiny_model), tiny_model)
    assert sha256(tiny_model) == before


def test_a_file_in_the_folders_place_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    """`output` is a file."""
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ValueError, match="a file"):
        write(module_of(tiny_model), template_of(tiny_model), tmp_path / "out")


@pytest.mark.parametrize("what", ["weights", "template", "tokens"])
def test_an_export_that_reads_back_wrong_is_reported_and_the_old_one_stays(
    exported: tuple[Any, Path], tiny_model: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """One weight off by 1, a lost template, a changed vocabulary: RuntimeError, the old folder whole, no leftovers."""
    _, folder = exported
    before = sha256(folder)
    model_load, tokenizer_load = AutoModelForCausalLM.from_pretrained, AutoTokenizer.from_pretrained

    def bad_model(path: Path) -> Any:
        model = model_load(path)
        if what == "weights":
            with torch.no_grad():
                model.get_input_embeddings().weight[3, 3] += 1
        return model

    def bad_tokenizer(path: Path) -> Any:
        tokenizer = tokenizer_load(path)
        if what == "template":
            tokenizer.chat_template = "{{ messages[0]['content'] }}"
        if what == "tokens":
            tokenizer.add_tokens(["2 + 2"])
        return tokenizer

    module, template = module_of(tiny_model), template_of(tiny_model)
    monkeypatch.setattr(
        tool,
        "AutoModelForCausalLM",
        SimpleNamespace(from_pretrained=bad_model, from_config=AutoModelForCausalLM.from_config),
    )
    monkeypatch.setattr(tool, "AutoTokenizer", SimpleNamespace(from_pretrained=bad_tokenizer))
    with pytest.raises(RuntimeError, match=r"read back|renders|other tokens"):
        write(module, template, folder)
    assert sha256(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["out"]


def test_the_marker_names_the_files_of_the_export(exported: tuple[Any, Path]) -> None:
    """Exactly what is there."""
    _, folder = exported
    assert json.loads((folder / MARKER).read_text())["files"] == sorted(path.name for path in folder.iterdir())


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
def test_full_and_weights_only_checkpoints_give_the_same_file(config: list[str], tmp_path: Path) -> None:
    """last.ckpt, and the same without optimizer: one SHA-256, and it is not that of the source's weights."""
    fitted = main(["fit", *config, "--trainer.max_steps=2"])
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    slim = tmp_path / "slim.ckpt"
    torch.save({"state_dict": torch.load(last, weights_only=True)["state_dict"]}, slim)
    main(["export", *config])  # the newest checkpoint, to the run's folder
    main(["export", *config, f"--ckpt_path={slim}", f"--output={tmp_path / 'slim'}", "--dtype=float32"])
    assert sha256(tmp_path / "run" / "export") == sha256(tmp_path / "slim")
    trained = fitted.model.policy.state_dict()["model.model.embed_tokens.weight"]
    assert torch.equal(stored(tmp_path / "slim")["model.embed_tokens.weight"], trained)
    source = AutoModelForCausalLM.from_pretrained(fitted.model.model_name)
    assert not torch.equal(source.get_input_embeddings().weight, trained)


# case: export-04
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
