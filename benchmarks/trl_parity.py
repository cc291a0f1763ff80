"""Does smollit compute what TRL computes? One step of SFT and of DPO, in both, on the same rows, model and settings.

    python benchmarks/trl_parity.py                                      # a tiny random model, sample rows: seconds
    python benchmarks/trl_parity.py --model FOLDER --data FOLDER         # a real model and real rows
    python benchmarks/trl_parity.py --json | tail -n 1                   # one JSON object

Needs `pip install -e '.[trl]'`. Exits with 1 if a relative difference is above 1e-4.

Both sides read the same JSON Lines files and go their own way from there. TRL renders, tokenises, masks, pads and
scores separately, one row per response; smollit shares a pair's prompt. fp32 on the CPU, one batch, neither dropout nor
clipping. The DPO policy is the model with noise on its weights, and the reference the model itself: no reward is 0.
"""

import argparse
import json
import math
import sys
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from compare.chatml import TRL_CHATML
from datasets import Dataset
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PrinterCallback

import smollit
from smollit.data import UltraChatDataModule, UltraFeedbackDataModule
from smollit.data.datamodule import ChatDataModule
from smollit.data.encoding.encoder import Encoder
from smollit.data.encoding.options import EncodeOptions
from smollit.data.formats.converters import decode_row
from smollit.data.formats.detection.detect import detect_format
from smollit.data.formats.types import Kind
from smollit.data.sources.mixture import load_source
from smollit.data.template.template import load_template
from smollit.losses.settings import LOSS
from smollit.modules import DPOModule, FineTuningModule, SFTModule
from smollit.training import SmollitTrainer

TOLERANCE = 1e-4
LEARNING_RATE = 1e-12  # all metrics are of before the step
PACKAGE = Path(smollit.__file__).parent
COLUMNS: dict[Kind, tuple[str, ...]] = {"chat": ("messages",), "preference": ("chosen", "rejected")}
REWARDS = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies")
SFT = ("loss_tokens", "loss", "token_accuracy", "gradient_norm")
LOGS = ("logps/chosen", "logps/rejected", "logits/chosen", "logits/rejected")
DPO = ("loss_tokens", "loss", *LOGS, *REWARDS, "gradient_norm")
TRL_NAMES = {"token_accuracy": "mean_token_accuracy", "gradient_norm": "grad_norm"}  # where they differ from ours


class Setting(NamedTuple):
    """What both sides are given: JSON Lines of chats and of pairs, folders of models, and options."""

    chats: Path
    pairs: Path
    model: Path
    policy: Path
    num_rows: int
    max_length: int
    loss: str
    beta: float
    workspace: Path


class Metric(NamedTuple):
    """One metric, computed twice."""

    name: str
    trl: float
    smollit: float

    @property
    def difference(self) -> float:
        """|a - b| / max(|a|, |b|); 0 if they are equal, infinite if one is not a number."""
        if self.trl == self.smollit:
            return 0.0
        difference = abs(self.trl - self.smollit) / max(abs(self.trl), abs(self.smollit))
        return math.inf if math.isnan(difference) else difference


# ---- rows and models


def write_rows(dataset: Path, split: str, kind: Kind, model: Path, num_rows: int, max_length: int, to: Path) -> Path:
    """The first rows that smollit keeps and `comparable` lets through, as JSON Lines with the columns that count."""
    source = load_source(str(dataset), split)
    rows = source.rows.select(range(min(len(source.rows), 32 * num_rows)))
    template = load_template(AutoTokenizer.from_pretrained(model), "chatml")
    form = detect_format(source.columns(), source.head(num_rows), kind=kind)
    encoder = Encoder(template, EncodeOptions(kind, max_length), form)
    problems = encoder(rows[:], list(range(len(rows))))["problem"]
    found = [
        {name: row[name] for name in COLUMNS[kind]}
        for row, problem in zip(map(decode_row, rows), problems, strict=True)
        if not problem and comparable(row, COLUMNS[kind])
    ][:num_rows]
    if len(found) < num_rows:
        raise ValueError(f"{len(found)} of the first {len(rows)} rows of {dataset} can be used: raise --max-length")
    to.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    return to


def comparable(row: dict[str, Any], columns: tuple[str, ...]) -> bool:
    """No response begins with whitespace.

    TRL tokenises a chat as one text, where such whitespace may join the header's newline in one token; smollit cuts
    the text there, as generation does.
    """
    messages = [message for name in columns for message in row[name]]
    return not any(message["role"] == "assistant" and message["content"][:1].isspace() for message in messages)


def make_tiny(folder: Path) -> Path:
    """A random model from the tiny configuration, with logits that differ and whose mean is not 0."""
    config = AutoConfig.from_pretrained(PACKAGE / "models" / "tiny")
    config.initializer_range = 0.15
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    torch.nn.init.normal_(model.get_input_embeddings().weight, mean=0.05, std=config.initializer_range)
    return save(model, PACKAGE / "models" / "tiny", folder)


@torch.no_grad()
def perturb(source: Path, noise: float, folder: Path) -> Path:
    """The model with Gaussian noise on every weight, of `noise` times the root mean square of its tensor."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter += noise * parameter.square().mean().sqrt() * torch.randn(parameter.shape, generator=generator)
    return save(model, source, folder)


def save(model: Any, tokenizer: Path, folder: Path) -> Path:
    """A Hugging Face folder with the model and a tokenizer."""
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    return folder


# ---- TRL


def trl_options(setting: Setting) -> dict[str, Any]:
    """What SFTConfig and DPOConfig have in common: one fp32 step on the CPU, without clipping."""
    return {
        "output_dir": str(setting.workspace / "trl"),
        "max_steps": 1,
        "per_device_train_batch_size": setting.num_rows,
        "gradient_accumulation_steps": 1,
        "max_length": setting.max_length,
        "learning_rate": LEARNING_RATE,
        "max_grad_norm": 1e9,
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "model_init_kwargs": {"dtype": "float32", "attn_implementation": "sdpa", "attention_dropout": 0.0},
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


def trl_sft(setting: Setting) -> dict[str, float]:
    """One step of TRL's SFTTrainer on `messages`."""
    from trl import SFTConfig, SFTTrainer

    trainer = SFTTrainer(
        model=str(setting.model),
        args=SFTConfig(assistant_only_loss=True, **trl_options(setting)),
        train_dataset=read_rows(setting.chats),
        processing_class=trl_tokenizer(setting.model),
    )
    # The first token of a row has no prefix to be predicted from.
    num_trained = sum(label != -100 for labels in trainer.train_dataset["labels"] for label in labels[1:])
    return trl_step(trainer, setting) | {"loss_tokens": num_trained}


def trl_dpo(setting: Setting) -> dict[str, float]:
    """One step of TRL's DPOTrainer on `chosen` and `rejected`."""
    trainer = dpo_trainer(setting)
    num_trained = sum(
        min(len(row[name]), setting.max_length - len(row["prompt_ids"]))
        for row in trainer.train_dataset
        for name in ("chosen_ids", "rejected_ids")
    )
    return trl_step(trainer, setting) | {"loss_tokens": num_trained}


def dpo_trainer(setting: Setting, **options: Any) -> Any:
    """TRL's DPOTrainer on `chosen` and `rejected`, whose common turns it takes as the prompt."""
    from trl import DPOConfig, DPOTrainer

    given = {"beta": setting.beta, "loss_type": [setting.loss], "disable_dropout": True}

    return DPOTrainer(
        model=str(setting.policy),
        ref_model=AutoModelForCausalLM.from_pretrained(setting.model, dtype="float32", attn_implementation="sdpa"),
        args=DPOConfig(**(trl_options(setting) | given | options)),
        train_dataset=read_rows(setting.pairs),
        processing_class=trl_tokenizer(setting.model),
    )


def read_rows(path: Path) -> Dataset:
    """Rows in memory, so that TRL's preparation leaves no cache files."""
    return Dataset.from_list([json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()])


def trl_tokenizer(folder: Path) -> Any:
    """The model's tokenizer with the template that TRL can mask."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TRL_CHATML
    return tokenizer


def trl_step(trainer: Any, setting: Setting) -> dict[str, float]:
    """The log of the one step; TRL and transformers log all digits."""
    if len(trainer.train_dataset) != setting.num_rows:
        raise ValueError(f"TRL keeps {len(trainer.train_dataset)} of {setting.num_rows} rows: nothing to compare")
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer.state.log_history[0]


# ---- smollit


def smollit_sft(setting: Setting) -> dict[str, float]:
    """One step of SFTModule."""
    data = UltraChatDataModule(str(setting.chats), **data_options(setting))
    return smollit_step(SFTModule(str(setting.model), learning_rate=LEARNING_RATE, dropout=0.0), data, setting)


def smollit_dpo(setting: Setting) -> dict[str, float]:
    """One step of DPOModule."""
    data = UltraFeedbackDataModule(str(setting.pairs), **data_options(setting))
    options: dict[str, Any] = {"loss": LOSS.find(setting.loss)(beta=setting.beta), "learning_rate": LEARNING_RATE}
    return smollit_step(DPOModule(str(setting.policy), reference_name=str(setting.model), **options), data, setting)


def data_options(setting: Setting) -> dict[str, Any]:
    """All rows in one batch, in smollit's ChatML."""
    return {
        "train_split": "train",
        "val_split": None,
        "tokenizer_name": str(setting.model),
        "chat_template": "chatml",
        "max_length": setting.max_length,
        "train_batch_size": setting.num_rows,
        "cache_dir": str(setting.workspace / "cache"),
    }


def smollit_trainer(setting: Setting, num_steps: int, **options: Any) -> SmollitTrainer:
    """A trainer of so many steps in fp32 on the CPU, which writes nothing but what it logs."""
    return SmollitTrainer(
        default_root_dir=str(setting.workspace / "smollit"),
        accelerator="cpu",
        devices=1,
        precision="32-true",
        max_steps=num_steps,
        log_every_n_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        **options,
    )


def smollit_step(module: FineTuningModule, data: ChatDataModule, setting: Setting) -> dict[str, float]:
    """What one step logs under `train/`."""
    trainer = smollit_trainer(setting, 1)
    trainer.fit(module, datamodule=data)
    logged = {name.removeprefix("train/"): value.item() for name, value in trainer.callback_metrics.items()}
    return logged | {"loss_tokens": data.reports["train"].loss_tokens}


# ---- the comparison


def compare(setting: Setting) -> list[Metric]:
    """All metrics of SFT, then of DPO."""
    metrics = []
    for task, names, theirs, ours in (
        ("sft", SFT, trl_sft(setting), smollit_sft(setting)),
        ("dpo", DPO, trl_dpo(setting), smollit_dpo(setting)),
    ):
        metrics += [Metric(f"{task}/{name}", theirs[TRL_NAMES.get(name, name)], ours[name]) for name in names]
    return metrics


def prepare(args: argparse.Namespace, workspace: Path) -> Setting:
    """Write the rows and the models that both sides read."""
    samples = PACKAGE / "data" / "samples"
    chats = args.data / "ultrachat_200k" if args.data else samples / "ultrachat"
    pairs = args.data / "ultrafeedback_binarized" if args.data else samples / "ultrafeedback"
    model = args.model or make_tiny(workspace / "tiny")
    options = (model, args.rows, args.max_length)
    return Setting(
        chats=write_rows(chats, "train_sft", "chat", *options, workspace / "chats.jsonl"),
        pairs=write_rows(pairs, "train_prefs", "preference", *options, workspace / "pairs.jsonl"),
        model=model,
        policy=perturb(model, args.noise, workspace / "policy"),
        num_rows=args.rows,
        max_length=args.max_length,
        loss=args.loss,
        beta=args.beta,
        workspace=workspace,
    )


def parse(args: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="Hugging Face folder; a tiny random model if left out")
    parser.add_argument("--data", type=Path, help="folder with ultrachat_200k/ and ultrafeedback_binarized/")
    parser.add_argument("--rows", type=int, default=4, help="chats, and pairs, in the one batch")
    parser.add_argument("--max-length", type=int, default=256, help="tokens; both sides truncate on the right")
    parser.add_argument("--loss", default="sigmoid", choices=("sigmoid", "ipo", "hinge"), help="DPO's loss")
    parser.add_argument("--beta", type=float, default=0.1, help="DPO's beta")
    parser.add_argument("--noise", type=float, default=0.05, help="policy's distance from the reference, relative")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    return parser.parse_args(args)


def main(args: list[str] | None = None) -> int:
    """Compare, print the table, and report with the exit code whether all metrics agree."""
    options = parse(args)
    if find_spec("trl") is None:
        print("TRL is not installed: pip install -e '.[trl]'", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as workspace:
        metrics = compare(prepare(options, Path(workspace)))
    versions = {name: version(name) for name in ("trl", "transformers", "torch", "lightning")}
    print(f"smollit {smollit.__version__}, " + ", ".join(f"{name} {number}" for name, number in versions.items()))
    print(f"| {'metric':<22} | {'TRL':>14} | {'smollit':>14} | {'difference':>10} |")
    print(f"|{'-' * 24}|{'-' * 15}:|{'-' * 15}:|{'-' * 11}:|")
    for metric in metrics:
        print(f"| {metric.name:<22} | {metric.trl:14.8g} | {metric.smollit:14.8g} | {metric.difference:10.1e} |")
    agree = all(metric.difference <= TOLERANCE for metric in metrics)
    print(f"all within {TOLERANCE:g}" if agree else f"NOT all within {TOLERANCE:g}")
    if options.json:
        rows = [metric._asdict() | {"difference": metric.difference} for metric in metrics]
        print(json.dumps({"agree": agree, "tolerance": TOLERANCE, "versions": versions, "metrics": rows}))
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
