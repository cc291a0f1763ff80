"""A trained policy -> a Hugging Face folder that loads, stops and chats; compared before success is reported."""

import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

from smollit.data.chat import ChatTemplate
from smollit.models.causal_lm import load_config
from smollit.models.checkpoint import policy_weights
from smollit.models.sharding import unwrap

log = logging.getLogger(__name__)
ExportDtype = Literal["auto", "float32", "bfloat16", "float16"]
PREFIX = "model."  # of CausalLM's keys before transformers' own
PROBE = [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "4"}]


def export(module: Any, template: ChatTemplate, output: Path, dtype: ExportDtype = "auto") -> None:
    """Write the module's policy as a Hugging Face folder. All ranks must call it; rank 0 writes.

    Args:
        module: A module whose policy is loaded.
        template: Chat template and tokenizer that go with it.
        output: Folder to write; an earlier export there is replaced when the new one is found right.
        dtype: dtype of the weights; `auto` takes that of the checkpoint that training began with.

    Raises:
        ValueError: If `output` holds something that is not an export.
        RuntimeError: If what was written does not read back the same.
    """
    weights = whole_weights(module.policy)
    if not module.trainer.is_global_zero:
        return
    check_output(output)
    wanted = pick_dtype(dtype, load_config(module.model_name))
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        model = build_model(unwrap(module.policy).config, weights, wanted)
        tokenizer = finish_tokenizer(template)
        set_generation(model, tokenizer, template)
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        compare(temporary, model, template)
        temporary.chmod(0o755)  # mkdtemp makes it private
        replace_folder(temporary, output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    log.info("exported %s (%s): read back and found the same", output, str(wanted).removeprefix("torch."))


def load_policy(module: Any, path: Path) -> None:
    """Build the policy alone, and give it the weights of a checkpoint, sharded or not, full or weights only.

    Raises:
        ValueError: If the file is no checkpoint of this module.
    """
    module.policy = module.load(module.model_name, module.weights)
    module.policy.load_state_dict(policy_weights(path))


def whole_weights(policy: nn.Module) -> dict[str, Tensor]:
    """All weights under transformers' names, on the CPU, gathered from all ranks where they are sharded."""
    if isinstance(policy, FullyShardedDataParallel | FSDPModule):
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state = get_model_state_dict(policy, options=options)
    else:
        state = policy.state_dict()
    return {name.removeprefix(PREFIX): tensor.detach().cpu() for name, tensor in state.items()}


def pick_dtype(choice: ExportDtype, source: PretrainedConfig) -> torch.dtype:
    """The dtype that was asked for, or that of the source checkpoint, or fp32 if it does not say."""
    if choice != "auto":
        return getattr(torch, choice)
    return getattr(source, "dtype", None) or torch.float32


def build_model(config: PretrainedConfig, weights: dict[str, Tensor], dtype: torch.dtype) -> nn.Module:
    """A transformers model with these weights, ready to serve: tied, cached, in eval mode."""
    config = type(config).from_dict(config.to_dict())
    config.dtype = dtype
    config.use_cache = True
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.load_state_dict(weights)
    model.tie_weights()
    return model.eval()


def finish_tokenizer(template: ChatTemplate) -> PreTrainedTokenizerBase:
    """The tokenizer with the template, and with the token that ends an answer as its eos."""
    tokenizer = template.tokenizer
    stops = template.stop_ids()
    tokenizer.chat_template = template.text
    if stops:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(stops[0])
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def set_generation(model: Any, tokenizer: PreTrainedTokenizerBase, template: ChatTemplate) -> None:
    """Stop at the end of the turn as well as at the source's own eos, and agree with the tokenizer everywhere."""
    original = model.config.eos_token_id
    originals = original if isinstance(original, list) else [original]
    stops = list(dict.fromkeys([*template.stop_ids(), *(token for token in originals if token is not None)]))
    turn_end = template.turn_end()
    is_one_token = bool(turn_end) and len(template.encode([turn_end])[0]) == 1
    model.config.eos_token_id = stops[0] if stops else None
    model.config.bos_token_id = tokenizer.bos_token_id
    model.config.pad_token_id = tokenizer.pad_token_id
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=stops or None,
        pad_token_id=tokenizer.pad_token_id,
        stop_strings=None if is_one_token or not turn_end else [turn_end],
    )


def compare(folder: Path, model: nn.Module, template: ChatTemplate) -> None:
    """Read the folder back: same weights, same logits, same rendered text.

    Raises:
        RuntimeError: If anything differs.
    """
    reloaded = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    expected, found = model.state_dict(), reloaded.state_dict()
    differing = [name for name in expected if name not in found or not torch.equal(expected[name], found[name])]
    if differing or expected.keys() != found.keys():
        raise RuntimeError(f"the export does not read back the same: {differing or sorted(expected.keys() ^ found)}")
    text = template.render(PROBE)
    if tokenizer.apply_chat_template(PROBE, tokenize=False) != text:
        raise RuntimeError("the exported tokenizer renders a chat differently from the one that was trained with")
    ids = torch.tensor([template.encode([text])[0]])
    with torch.no_grad():
        if not torch.equal(model(ids).logits, reloaded.eval()(ids).logits):
            raise RuntimeError("the exported model gives other logits than the trained one")


def check_output(output: Path) -> None:
    """Refuse to write over anything that is not an export.

    Raises:
        ValueError: If `output` is a file, or a folder with something else in it.
    """
    if output.is_file() or (output.is_dir() and any(output.iterdir()) and not (output / "config.json").is_file()):
        raise ValueError(f"the export folder {output} exists and holds no model: give a folder that is empty or new")


def replace_folder(new: Path, target: Path) -> None:
    """Put `new` in the place of `target`; the old folder goes only when the new one stands."""
    if not target.exists():
        os.replace(new, target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent)) / "folder"
    os.replace(target, old)
    os.replace(new, target)
    shutil.rmtree(old.parent)
