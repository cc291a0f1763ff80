"""Reads folders with the transformers of this interpreter, for test_readers.py: read.py FOLDER [FOLDER ...]

Writes what it found as JSON: for each folder the logits of tokens, the ids of texts, a rendered chat, and a response.
"""

import importlib.util
import json
import sys
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

IDS = torch.tensor([[5, 9, 300, 1000, 7, 7, 42, 1999, 6, 11, 12, 13]])
TEXTS = ["Hello there.", "a  b\n\n\tc ", "naïve café — 日本語", "12345.678", "<|im_start|>user\nHi<|im_end|>\n", " x"]
CHAT = [{"role": "user", "content": "Hello?"}]
TRAINED = [*CHAT, {"role": "assistant", "content": "Good day."}]
KEPT = ("eos_token_id", "pad_token_id", "temperature", "top_p", "repetition_penalty", "do_sample")


def read(folder: Path) -> dict:
    """What this version makes of a folder."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    found = {"logits": logits_of(model)}
    if (folder / "tokenizer.json").is_file():
        tokenizer = AutoTokenizer.from_pretrained(folder)
        ids = tokenizer(TEXTS, add_special_tokens=False)["input_ids"]
        inputs = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        pipe = pipeline("text-generation", model=str(folder), device="cpu")
        found |= {
            "ids": ids,
            "decoded": tokenizer.batch_decode(ids),
            "special": sorted(tokenizer.all_special_tokens),
            "chat": tokenizer.apply_chat_template(TRAINED, tokenize=False),
            "generated": model.generate(**inputs, max_new_tokens=8, do_sample=False).tolist(),
            "pipeline": pipe(CHAT, max_new_tokens=8, do_sample=False)[0]["generated_text"],
            "generation": {k: v for k, v in model.generation_config.to_dict().items() if k in KEPT},
        }
    return found


def logits_of(model: torch.nn.Module) -> list:
    """The logits of some tokens."""
    with torch.no_grad():
        return model(IDS).logits[0].tolist()


def with_peft(folder: Path) -> dict:
    """A LoRA adapter starts with B = 0: the logits of the model itself."""
    from peft import LoraConfig, get_peft_model

    model = AutoModelForCausalLM.from_pretrained(folder)
    adapted = get_peft_model(model, LoraConfig(r=2, task_type="CAUSAL_LM", target_modules="all-linear"))
    return {"logits": logits_of(adapted.eval()), "trainable": adapted.get_nb_trainable_parameters()[0]}


def with_trl(folder: Path) -> float:
    """The loss of one SFT step of TRL, from the folder's name alone."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows = Dataset.from_list([{"messages": TRAINED}] * 2)
    arguments = SFTConfig(
        str(folder.parent / "trl"), max_steps=1, per_device_train_batch_size=2, use_cpu=True, bf16=False,
        report_to=[], save_strategy="no", logging_steps=1, disable_tqdm=True, dataset_num_proc=None,
    )  # fmt: skip
    trainer = SFTTrainer(str(folder), args=arguments, train_dataset=rows)
    trainer.train()
    return float(trainer.state.log_history[0]["loss"])


if __name__ == "__main__":
    folders = [Path(word) for word in sys.argv[2:]]
    result = {"transformers": transformers.__version__, "folders": {folder.name: read(folder) for folder in folders}}
    if importlib.util.find_spec("peft"):
        result["peft"] = with_peft(folders[0])
    if importlib.util.find_spec("trl"):
        result["trl"] = with_trl(folders[0])
    Path(sys.argv[1]).write_text(json.dumps(result))
