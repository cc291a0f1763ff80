"""A trained policy -> a Hugging Face folder that loads, stops and chats; compared before success is reported."""

import copy
import logging
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from smollit.commands.command import Command, ConfiguredRun
from smollit.commands.export_folder import check_output, replace_folder, write_marker
from smollit.data.template.template import ChatTemplate
from smollit.models import CausalLM
from smollit.models.checkpoint import load_weights
from smollit.models.pretrained import load_config, no_progress_bar
from smollit.models.sharding import is_sharded, unwrap
from smollit.models.vocabulary import fit_vocabulary

log = logging.getLogger(__name__)
ExportDtype = Literal["auto", "float32", "bfloat16", "float16"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PREFIX = "model."  # of CausalLM's keys before transformers' own
PROBE = [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "4"}]


@dataclass(kw_only=True)
class ExportCommand(Command):
    """Write a checkpoint as a Hugging Face folder, read it back and compare.

    Args:
        ckpt_path: The checkpoint; `last` or null takes the newest in the run folder, `best` the one that a
            ModelCheckpoint keeps.
        output: Folder to write; null takes `export` in the run folder.
        dtype: dtype of the weights; `auto` takes that of the model that training started from.
    """

    ckpt_path: str | None = None
    output: str | None = None
    dtype: ExportDtype = "auto"

    def run(self, run: ConfiguredRun) -> None:
        """Load the policy on the CPU from the checkpoint, and export it."""
        checkpoint = run.find_checkpoint(self.ckpt_path or "last")
        policy = CausalLM(run.model.model_name, weights=run.model.weights)
        fit_vocabulary(policy.model, run.datamodule.vocabulary_size, run.datamodule.add_tokens)
        load_weights(policy, checkpoint, run.model.model_name)
        output = Path(self.output or run.folder / "export")
        export(policy, run.model.model_name, template=run.datamodule.template, output=output, dtype=self.dtype)


def export(
    policy: nn.Module,
    model_name: str,
    *,
    template: ChatTemplate,
    output: Path,
    dtype: ExportDtype = "auto",
    writes: bool = True,
) -> None:
    """Write a policy as a Hugging Face folder. With a sharded policy all ranks must call it; one of them writes.

    Args:
        policy: A CausalLM, or its FSDP wrapper.
        model_name: Hub id or local folder of the model that training started from.
        template: Its chat template and tokenizer.
        output: Folder to write; an earlier export there is replaced after the new one is verified.
        dtype: dtype of the weights; `auto` takes that of the checkpoint that training started from.
        writes: Whether this rank writes.

    Raises:
        ValueError: If `output` holds something that is not an export.
        RuntimeError: If the written folder does not read back the same.
    """
    weights = whole_weights(policy)
    if not writes:
        return
    output = output.resolve()
    check_output(output)
    source = load_config(model_name)
    source.vocab_size = unwrap(policy).config.vocab_size  # tokens may have been added
    wanted = pick_dtype(dtype, source)
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        model = build_model(source, weights, wanted)
        with no_progress_bar(True):
            write_folder(temporary, model, template, source_stops(model_name, source))
        write_marker(temporary, model_name)
        replace_folder(temporary, output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    log.info("exported %s (%s): read back and verified", output, str(wanted).removeprefix("torch."))


def write_folder(folder: Path, model: PreTrainedModel, template: ChatTemplate, source_stops: list[int]) -> None:
    """Model and tokenizer in Hugging Face format, read back and compared."""
    tokenizer = finish_tokenizer(template)
    set_generation(model, tokenizer, template, source_stops)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    compare(folder, model, template)
    folder.chmod(0o755)  # mkdtemp makes it private


def whole_weights(policy: nn.Module) -> dict[str, Tensor]:
    """All weights under transformers' names, on the CPU, gathered from all ranks where they are sharded."""
    if is_sharded(policy):
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state: dict[str, Any] = get_model_state_dict(policy, options=options)
    else:
        state = policy.state_dict()
    return {name.removeprefix(PREFIX): tensor.detach().cpu() for name, tensor in state.items()}


def pick_dtype(choice: ExportDtype, source: PretrainedConfig) -> torch.dtype:
    """The requested dtype, or that of the source checkpoint, or fp32 if that names none."""
    if choice != "auto":
        return DTYPES[choice]
    return source.dtype if isinstance(source.dtype, torch.dtype) else DTYPES.get(str(source.dtype), torch.float32)


def build_model(config: PretrainedConfig, weights: dict[str, Tensor], dtype: torch.dtype) -> PreTrainedModel:
    """A transformers model with these weights, ready to serve: tied, cached, in eval mode.

    Args:
        config: Configuration of the model that training started from: the policy's may have another dropout.
        weights: The weights under transformers' names.
        dtype: dtype of the result.
    """
    config = type(config).from_dict(config.to_dict())
    config.dtype = dtype
    config.use_cache = True
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.load_state_dict(weights)
    model.tie_weights()
    return model.eval()


def finish_tokenizer(template: ChatTemplate) -> PreTrainedTokenizerBase:
    """A copy of the tokenizer with the template, and with the token that ends a turn as its eos."""
    tokenizer = copy.deepcopy(template.tokenizer)  # the run continues with its own
    tokenizer.chat_template = template.source
    if tokenizer.pad_token is None:
        # The old eos: if the end of turn were padding, which the loss masks, further training would unlearn to stop.
        tokenizer.pad_token = tokenizer.eos_token
    stops = template.stop_ids()
    if stops:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(stops[0])
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer


def source_stops(model_name: str, config: PretrainedConfig) -> list[int]:
    """Stop tokens of the model that training started from: of its generation settings, else of its config."""
    try:
        stops = GenerationConfig.from_pretrained(model_name).eos_token_id
    except OSError:  # it has no generation_config.json
        stops = config.eos_token_id
    return [token for token in (stops if isinstance(stops, list) else [stops]) if token is not None]


def set_generation(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, template: ChatTemplate, source_stops: list[int]
) -> None:
    """Stop at the end of the turn as well as where the source did, and agree with the tokenizer everywhere."""
    stops = list(dict.fromkeys([*template.stop_ids(), *source_stops]))
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


def compare(folder: Path, model: PreTrainedModel, template: ChatTemplate) -> None:
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
    text = template.render(PROBE).text
    if tokenizer.apply_chat_template(PROBE, tokenize=False) != text:
        raise RuntimeError("the exported tokenizer renders a chat differently from the one used in training")
    ids = torch.tensor([template.encode([text])[0]])
    if tokenizer(text, add_special_tokens=False)["input_ids"] != ids[0].tolist():
        raise RuntimeError("the exported tokenizer gives other tokens than the one used in training")
    with torch.no_grad():
        if not torch.equal(model(ids).logits, reloaded.eval()(ids).logits):
            raise RuntimeError("the exported model gives other logits than the trained one")
