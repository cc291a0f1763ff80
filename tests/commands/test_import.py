"""`import`: configs of other tools give the settings that they mean, and configs that smollit's parser takes."""

import json
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoTokenizer

from smollit.main import main
from tests.conftest import ROOT, SAMPLES

TRL = """
model_name_or_path: Qwen/Qwen2-0.5B-Instruct
dataset_name: trl-lib/ultrafeedback_binarized
learning_rate: 5.0e-7
loss_type: [sigmoid, bco_pair]
loss_weights: [0.8, 0.2]
per_device_train_batch_size: 2
gradient_accumulation_steps: 8
lr_scheduler_type: cosine
adam_beta2: 0.95
eval_steps: 50
precompute_ref_log_probs: true
use_peft: true
lora_r: 32
report_to: wandb
"""
AXOLOTL = """
base_model: HuggingFaceTB/SmolLM2-135M
datasets:
  - path: mhenrichsen/alpaca_2k_test
    type: alpaca
sequence_len: 2048
sample_packing: true
micro_batch_size: 2
val_set_size: 0.05
adapter: lora
lora_r: 8
lora_target_linear: true
learning_rate: 2e-4
warmup_ratio: 0.1
bf16: auto
flash_attention: true
"""
LLAMA_FACTORY = """
stage: dpo
model_name_or_path: meta-llama/Llama-3.2-1B-Instruct
finetuning_type: lora
quantization_bit: 4
dataset: dpo_en_demo
cutoff_len: 1024
pref_beta: 0.2
pref_loss: orpo
template: llama3
num_train_epochs: 2.5
"""
MIXTURE = """
model_name_or_path: my-org/model
chat_template: "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
dataset_mixture:
  datasets:
    - {id: my-org/a, config: small, split: train_x, columns: [messages], weight: 0.5}
    - {id: my-org/b, split: train_y, weight: 1.0}
lr_scheduler_type: cosine_with_min_lr
lr_scheduler_kwargs: {min_lr_rate: 0.1}
warmup_steps: 0.05
max_steps: 100
num_train_epochs: 2
adam_beta2: 0.95
eval_strategy: 'no'
loss_type: dft
torch_dtype: bfloat16
optim: paged_adamw_8bit
"""
AXOLOTL_IPO = """
base_model: my-org/model
rl: ipo
datasets:
  - {path: my-org/pairs, split: train_prefs, type: chat_template.default, field_messages: asked, field_chosen: chosen}
val_set_size: 0.1
adapter: qlora
load_in_4bit: true
peft_use_dora: true
lora_r: 8
lora_modules_to_save: [embed_tokens, lm_head]
gradient_checkpointing: offload
train_on_inputs: true
"""
FACTORY_SIMPO = """
stage: dpo
pref_loss: simpo
model_name_or_path: my-org/model
lora_target: q_proj, v_proj
dataset: here, gone
val_size: 20
max_samples: 100
enable_thinking: false
lr_scheduler_type: constant
warmup_ratio: 0.1
"""
TRL_PEFT = """
model_name_or_path: my-org/model
dataset_name: my-org/pairs
loss_type: [sigmoid, exo_pair]
label_smoothing: 0.01
use_peft: true
eval_strategy: steps
eval_steps: 20
load_best_model_at_end: true
per_device_eval_batch_size: 4
max_length: null
"""
OLDER_NAMES = """
model_name_or_path: my-org/model
dataset_mixer: {my-org/a: 1.0}
dataset_splits: [train_sft, test_sft]
evaluation_strategy: epoch
max_seq_length: 4096
use_flash_attention_2: true
"""
SLICE = """
base_model: my-org/model
datasets:
  - path: my-org/a
    split: train[:1%]
val_set_size: 0.05
sequence_len: 512
"""
ARGUMENTS = json.dumps(
    {"output_dir": "out", "per_device_train_batch_size": 4, "max_steps": -1, "weight_decay": 0.01, "eval_steps": 0.1}
)
CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("trl.yaml", TRL, {
        "model": "smollit.modules.DPOModule", "model.model_name": "Qwen/Qwen2-0.5B-Instruct",
        "model.learning_rate": 5e-7,
        "model.loss": "Sum", "model.loss.weights": [0.8, 0.2], "model.optimizer.betas": [0.9, 0.95],
        "model.adapter.r": 32,
        "model.reference": "precomputed", "data.train_batch_size": 2, "trainer.accumulate_grad_batches": 8,
        "trainer.val_every_n_steps": 50, "model.schedule": "Cosine",
        "trainer.gradient_clip_val": 1.0, "data.max_length": 1024, "trainer.max_epochs": 3,  # TRL's defaults
    }),
    ("axolotl.yaml", AXOLOTL, {
        "model": "smollit.modules.SFTModule", "data.dataset": "mhenrichsen/alpaca_2k_test", "data.packing": "on",
        "data.train_split": "train[5%:]", "data.val_split": "train[:5%]", "model.adapter": "LoRA", "model.adapter.r": 8,
        "model.learning_rate": 2e-4, "trainer.precision": "bf16-mixed", "trainer.max_epochs": 1,
    }),
    ("factory.yaml", LLAMA_FACTORY, {
        "model": "smollit.modules.DPOModule", "model.loss": "ORPO", "model.loss.beta": 0.2, "data.max_length": 1024,
        "model.adapter": "LoRA", "model.quantize": "nf4-dq",
        "trainer.gradient_clip_val": 1.0,
        "trainer.max_epochs": 3,  # a part of an epoch is rounded up
    }),
    ("arguments.json", ARGUMENTS, {
        "model": "smollit.modules.SFTModule", "trainer.default_root_dir": "out", "model.optimizer.weight_decay": 0.01,
        "data.train_on": "all", "data.dataset": None, "data.val_split": None,
    }),
    ("mixture.yaml", MIXTURE, {
        "model": "smollit.modules.SFTModule", "model.loss": "DFT", "data": "smollit.data.ChatDataModule",
        "data.dataset": [
            {"dataset": "my-org/a", "subset": "small", "split": "train_x", "weight": 0.5},
            {"dataset": "my-org/b", "split": "train_y", "weight": 1.0},
        ],
        "data.val_split": None, "model.schedule": "Cosine", "model.schedule.floor": 0.1, "model.warmup_ratio": 0.05,
        "trainer.max_steps": 100, "trainer.max_epochs": -1,  # max_steps comes first in transformers
        "model.optimizer.betas": [0.9, 0.95], "model.optimizer.weight_decay": 0.0,  # torch's own default is 0.01
        "model.adapter": None, "data.train_split": None,
    }),
    ("ipo.yaml", AXOLOTL_IPO, {
        "model": "smollit.modules.DPOModule", "model.loss": "IPO", "model.loss.beta": 0.1,
        "data": "smollit.data.PreferenceDataModule", "data.dataset": "my-org/pairs", "data.columns.prompt": "asked",
        "data.train_split": "train_prefs[10%:]", "data.val_split": "train_prefs[:10%]", "data.train_on": None,
        "model.adapter": "DoRA", "model.adapter.r": 8, "model.adapter.vocabulary": True, "model.quantize": "nf4-dq",
        "model.adapter.targets": ["q_proj", "v_proj"],  # peft's for Llama
        "model.gradient_checkpointing": True, "model.schedule": "Cosine", "model.warmup_ratio": 0.03,
        "trainer.gradient_clip_val": 1.0,  # defaults
    }),
    ("simpo.yaml", FACTORY_SIMPO, {
        "model": "smollit.modules.DPOModule", "model.loss": "SimPO", "model.loss.beta": 0.1, "model.loss.gamma": 0.5,
        "model.adapter": "LoRA", "model.adapter.r": 8, "model.adapter.alpha": 16.0,  # defaults
        "model.adapter.targets": ["q_proj", "v_proj"], "data.max_rows": 100, "data.train_split": "train[20:]",
        "data.val_split": "train[:20]", "data.chat_template_kwargs.enable_thinking": False,
        "model.schedule": "Constant", "model.warmup_ratio": None,  # transformers' constant does not warm up
    }),
    ("peft.yaml", TRL_PEFT, {
        "model.loss": "Sum", "model.loss.beta": 0.1, "model.adapter.r": 16, "model.adapter.dropout": 0.05,
        "model.loss.losses": [
            {"class_path": "sigmoid", "init_args": {"beta": 0.1}},  # TRL smooths only labels of the other
            {"class_path": "exo_pair", "init_args": {"label_smoothing": 0.01, "beta": 0.1}},
        ],
        "data.train_split": "train", "data.val_split": "test", "trainer.val_every_n_steps": 20,
        "trainer.keep_best": "val/loss", "data.max_length": None, "model.learning_rate": 1e-6,
    }),
    ("older.yaml", OLDER_NAMES, {
        "data.max_length": 4096, "data.train_split": "train_sft", "data.val_split": "test_sft",  # no default over them
    }),
    ("slice.yaml", SLICE, {"data.train_split": "train[:1%]", "data.val_split": None}),
]  # fmt: skip


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"model": class, "model.loss": class, "model.loss.beta": 0.1}."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        path = prefix if name in ("class_path", "init_args") else f"{prefix}.{name}".lstrip(".")
        found |= flat(value, path) if isinstance(value, dict) else {path: value}
    return found


def imported(source: Path, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], list[str]]:
    """The config that a file becomes, which is one that `fit` accepts, and what is said of each setting."""
    output = source.with_name("smollit.yaml")
    main(["import", str(source), "--output", str(output), "--json"])
    lines = [f"{line['name']} -> {line['result']}" for line in json.loads(capsys.readouterr().out)["lines"]]
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--config", str(output), "--model.model_name", "x", "--data.dataset", "y", "--print_config"])
    assert ended.value.code in (0, None), capsys.readouterr().err
    return flat(yaml.safe_load(output.read_text())), lines


# promise: import
@pytest.mark.parametrize(("name", "text", "expected"), CASES, ids=[name for name, _, _ in CASES])
def test_a_config_of_another_tool(
    name: str, text: str, expected: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each setting has its counterpart, or a reason; the file is not overwritten."""
    source = tmp_path / name
    source.write_text(text)
    found, lines = imported(source, capsys)
    assert {key: found.get(key) for key in expected} == expected
    assert not any(line.endswith(" -> ") for line in lines)
    given = {key for key, value in yaml.safe_load(text).items() if value is not None}
    assert {key for key in given if not any(line.startswith(key) for line in lines)} == set()
    with pytest.raises(SystemExit, match="exists, and is not overwritten"):
        main(["import", str(source), "--output", str(tmp_path / "smollit.yaml")])


# promise: import
def test_the_template_and_the_sets_beside_a_config_are_found(tmp_path: Path) -> None:
    """A chat template as text becomes a file; a name of dataset_info.json its file, with its columns."""
    for name, text in (("mixture", MIXTURE), ("simpo", FACTORY_SIMPO)):
        (tmp_path / f"{name}.yaml").write_text(text)
    entry = {"file_name": "pairs.json", "ranking": True, "columns": {"prompt": "q", "chosen": "chosen"}}
    (tmp_path / "data").mkdir()
    (tmp_path / "data/dataset_info.json").write_text(json.dumps({"here": entry}))
    configs = []
    for name in ("mixture", "simpo"):
        main(["import", str(tmp_path / f"{name}.yaml"), "--output", str(tmp_path / f"{name}.new.yaml")])
        configs.append(yaml.safe_load((tmp_path / f"{name}.new.yaml").read_text())["data"]["init_args"])
    assert Path(configs[0]["chat_template"]).read_text() == yaml.safe_load(MIXTURE)["chat_template"]
    sets = [
        {"dataset": str(tmp_path / "data/pairs.json"), "columns": {"prompt": "q"}},
        {"dataset": "gone"},
    ]
    assert configs[1]["dataset"] == sets


ROW = {"q": "Say 1", "a": "1 ok", "chosen": "1 ok", "rejected": "no", "text": "1 is a number.", "more": "now"}
PAIRS = {"chosen": "chosen", "rejected": "rejected"}
INFO = {
    "texts": {"file_name": "rows.json", "columns": {"prompt": "text"}},
    "pairs": {"file_name": "rows.json", "ranking": True, "columns": {"prompt": "q", "query": "more", **PAIRS}},
    "chats": {"file_name": "rows.json", "columns": {"prompt": "q", "response": "a"}},
}
FORM = "{instruction}"
OWN_TYPE = {"field_instruction": "q", "field_output": "a", "system_prompt": "", "format": FORM, "no_input_format": FORM}
OWN_PAIRS = {"field_prompt": "q", "field_chosen": "chosen", "field_rejected": "rejected", "prompt_format": "{prompt}"}
SETS: list[tuple[dict[str, Any], dict[str, Any], set[str]]] = [
    ({"stage": "pt", "dataset": "texts"}, {"data.format": "text", "data.columns": None}, set()),
    ({"stage": "dpo", "dataset": "pairs"}, {"data.columns.prompt": "q + more"}, set()),
    (
        {"stage": "sft", "dataset": "chats", "eval_dataset": "chats"},
        {
            "data.columns.instruction": "q",
            "data.val_sets.rows.columns.output": "a",
            "data.val_sets.rows.split": "train",
        },
        set(),
    ),
    (
        {"base_model": "m", "datasets": [{"path": "data/rows.json", "type": OWN_TYPE}]},
        {"data.columns.instruction": "q", "data.columns.output": "a"},
        {"datasets[0].type.format", "datasets[0].type.no_input_format"},
    ),
    (
        {"base_model": "m", "rl": "dpo", "datasets": [{"path": "data/rows.json", "type": OWN_PAIRS}]},
        {"data.columns.prompt": "q"},
        {"datasets[0].type.prompt_format"},
    ),
    (
        {"base_model": "m", "test_datasets": [{"path": "data/rows.json", "type": "completion"}] * 2}
        | {"datasets": [{"path": "data/rows.json", "type": OWN_TYPE | {"format": "", "no_input_format": ""}}]},
        {"data.val_sets.rows.format": "text", "data.val_sets.rows_1.dataset": "data/rows.json"},
        set(),
    ),
]


@pytest.mark.parametrize(("given", "expected", "missing"), SETS, ids=[str(given) for given, _, _ in SETS])
def test_the_rows_of_listed_sets_are_read(
    given: dict[str, Any],
    expected: dict[str, Any],
    missing: set[str],
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each column becomes the part that it is in the stage; texts around columns have no counterpart."""
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    Path("data/rows.json").write_text(json.dumps([ROW] * 4))
    Path("data/dataset_info.json").write_text(json.dumps(INFO))
    Path("a.yaml").write_text(yaml.safe_dump(given))
    found, lines = imported(tmp_path / "a.yaml", capsys)
    assert {key: found.get(key) for key in expected} == expected
    assert {line.partition(": ")[0] for line in lines if "a chat template renders the rows" in line} == missing
    main(["inspect", "--config", "smollit.yaml", "--model.model_name", str(tiny_model), "--data.cache_dir", "cache"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (AXOLOTL_IPO.replace("ipo", "kto"), "`rl: kto` has no counterpart"),
        (FACTORY_SIMPO.replace("dpo", "rm"), "`stage: rm` has no counterpart"),
        (FACTORY_SIMPO.replace("simpo", "kto_pair"), "`pref_loss: kto_pair` has no counterpart"),
        (TRL_PEFT + "num_generations: 8", "`num_generations` is of GRPO"),
        (TRL_PEFT + "num_train_epochs: auto", "a run without an end is not written"),
        (AXOLOTL + "num_epochs: -1", "a run without an end is not written"),
        ("colour: red", "expected the settings of axolotl, LLaMA-Factory, TRL or a TrainingArguments"),
    ],
)
def test_what_can_not_be_imported_is_refused(text: str, words: str, tmp_path: Path) -> None:
    """Another method is never imported as SFT or DPO, and no run without an end is written."""
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(SystemExit, match=words):
        main(["import", str(tmp_path / "a.yaml")])


AXOLOTL_QLORA = AXOLOTL.replace("adapter: lora", "adapter: qlora\nload_in_4bit: true")
MIN_LR = "model_name_or_path: a\ndataset_name: b\nlearning_rate: 5e-7\nlr_scheduler_type: cosine_with_min_lr\n"
ROOT_SCHEDULE = MIN_LR.replace("cosine_with_min_lr", "inverse_sqrt") + "lr_scheduler_kwargs: "
SAID = [
    (ARGUMENTS, "eval_steps: 0.1 -> an interval as a fraction of the run has no counterpart: give steps"),
    (AXOLOTL_QLORA, "load_in_4bit: True -> model.quantize: nf4-dq"),
    (MIN_LR + "lr_scheduler_kwargs: {min_lr: 5e-8}", "-> model.schedule.floor: 0.1"),  # PyYAML reads a text
    (ROOT_SCHEDULE + "{timescale: 100}", "-> model.schedule.timescale: 100"),
    (ROOT_SCHEDULE + "{min_lr_rate: 0.1}", "-> `model.schedule: InverseSqrt` has no min_lr_rate"),
    (AXOLOTL + "cosine_min_lr_ratio: 0.1", "-> model.schedule.floor: 0.1"),
    (AXOLOTL + "cosine_min_lr_ratio: 0.1\nlr_scheduler: linear", "-> it has no effect there: the schedule is `linear`"),
    (AXOLOTL.replace("batch_size: 2", "batch_size: auto"), "-> expected a number, got auto"),
    (AXOLOTL + "batch_size: 64", "batch_size: 64 -> trainer.accumulate_grad_batches: 32"),
    (AXOLOTL.replace("_linear: true", "_modules: 5"), "-> a value of this kind is not known: int"),
    (MIN_LR + "warmup_steps: [1, 2]", "-> expected a number, got [1, 2]"),
    (MIN_LR + "num_train_epochs: null", "num_train_epochs: 3 -> trainer.max_epochs: 3"),  # TRL's default
    (LLAMA_FACTORY, "num_train_epochs: 2.5 -> trainer.max_epochs: 3; a part of an epoch after whole ones has no"),
]


@pytest.mark.parametrize(("text", "said"), SAID, ids=[said for _, said in SAID])
def test_what_becomes_of_a_setting_is_said(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A counterpart with its value, or a reason: never the words of a Python error."""
    (tmp_path / "a.yaml").write_text(text)
    _, lines = imported(tmp_path / "a.yaml", capsys)
    assert any(said in line for line in lines), lines


# promise: import
@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "own", "agrees"),
    [
        ("sft", {"assistant_only_loss": True}, True),
        ("sft", {"packing": False}, True),
        ("sft", {"neftune_noise_alpha": 15.0}, False),
        ("dpo", {"beta": 0.2}, True),
    ],
)
def test_rows_are_scored_by_both(
    kind: str,
    own: dict[str, Any],
    agrees: bool,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """4 sample rows, before any step: what a config of TRL computes is what its import computes, with a template that
    TRL can mask; a loss on all tokens, TRL's default for chats, too. Noise, which is not imported, is another number,
    and said to be."""
    pytest.importorskip("trl")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    model = shutil.copytree(tiny_model, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = import_module("compare.chatml").TRL_CHATML
    tokenizer.save_pretrained(model)
    samples, columns = ("ultrachat/train_sft", ["messages"]) if kind == "sft" else ("ultrafeedback/train_prefs", [])
    rows = [json.loads(line) for line in (SAMPLES / f"{samples}.jsonl").read_text().splitlines()[:4]]
    kept = [{name: row[name] for name in columns or ("chosen", "rejected")} for row in rows]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    settings = {"model_name_or_path": str(model), "dataset_name": str(tmp_path / "rows.jsonl"), "max_length": 256}
    (tmp_path / "trl.yaml").write_text(yaml.safe_dump(settings | own | {"per_device_train_batch_size": 2}))
    main(["import", str(tmp_path / "trl.yaml"), "--check", "4", "--json"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["check"]
    assert [each["name"] for each in found[:2]] == ["loss_tokens", "loss"]
    assert all(each["agrees"] for each in found) == agrees, found


def test_what_can_not_be_checked_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A config of axolotl; no TRL."""
    cases = [("axolotl", AXOLOTL, "compares with TRL, and this is a config of axolotl"), ("trl", TRL, "needs TRL: pip")]
    for name, text, words in cases:
        (tmp_path / f"{name}.yaml").write_text(text)
        monkeypatch.setattr("smollit.commands.imports.check.find_spec", lambda name: None)
        with pytest.raises(SystemExit, match=words):
            main(["import", str(tmp_path / f"{name}.yaml"), "--check", "2"])
