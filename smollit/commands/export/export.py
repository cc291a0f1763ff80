"""A trained policy -> a Hugging Face folder that loads, stops and chats; compared before success is reported."""

import copy
import logging
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from smollit.commands.export.card import model_card
from smollit.commands.export.certificate import write_certificate
from smollit.commands.export.compare import compare
from smollit.commands.export.folder import check_output, replace_folder, temporary_folder
from smollit.commands.export.generation import set_generation, source_generation, stop_texts
from smollit.commands.export.other_readers import spell_config, spell_tokenizer
from smollit.commands.export.run import ExportForm, TrainedRun
from smollit.data.template.template import ChatTemplate
from smollit.models.adapters import Adapter, dequantized, quantized_layers
from smollit.models.causal_lm import CausalLM
from smollit.models.checkpoint import trained_weights
from smollit.models.pretrained import adapter_base, load_config, no_progress_bar
from smollit.models.sharding import is_sharded, unwrap

log = logging.getLogger(__name__)
ExportDtype = Literal["auto", "float32", "bfloat16", "float16"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PREFIX = "model."  # of CausalLM's keys before transformers' own


def export(
    policy: nn.Module,
    model_name: str,
    *,
    template: ChatTemplate,
    output: Path,
    dtype: ExportDtype = "auto",
    adapter: Adapter | None = None,
    form: ExportForm = "model",
    run: TrainedRun | None = None,
    name: str | None = None,
    writes: bool = True,
) -> None:
    """Write a policy as a Hugging Face folder. With a sharded policy all ranks must call it; one of them writes.

    Args:
        policy: A CausalLM, or its FSDP wrapper.
        model_name: Hub id or local folder of the model that training started from.
        template: Its chat template and tokenizer.
        output: Folder to write; an earlier export there is replaced after the new one is verified.
        dtype: dtype of the weights; `auto` takes that of the checkpoint that training started from.
        adapter: The policy's adapter, if it has one.
        form: `model` writes a whole model, with the adapter merged; `adapter` writes the adapter alone.
        run: The run that trained it, for the model card and the certificate.
        name: Name on the Hub that the model card tells users to load; None is the folder's.
        writes: Whether this rank writes.

    Raises:
        ValueError: If `output` holds something that is not an export, or there is no adapter to write.
        RuntimeError: If a merged adapter gives other logits than the policy, or the written folder does not read back
            the same.
    """
    if form == "adapter" and adapter is None:
        raise ValueError("there is no adapter to export, since `model.adapter` is null: leave out `--form adapter`")
    if form == "adapter" and adapter_base(model_name):
        raise ValueError(
            f"an adapter alone needs its base model, and {model_name} is an adapter itself, which was merged before"
            " training: leave out `--form adapter`"
        )
    weights = whole_weights(policy)
    if not writes:
        return
    if form == "adapter" and quantized_layers(policy):
        weights = trained_weights(unwrap(policy).model, weights)
        log.warning(
            "the adapter was trained on weights in 4 bits: on the whole base model, it responds a little differently"
        )
    output = output.resolve()
    check_output(output, model_name)
    source = load_config(model_name)
    source.vocab_size = unwrap(policy).config.vocab_size  # tokens may have been added
    wanted = pick_dtype(dtype, source)
    generation = source_generation(model_name, source)
    texts = stop_texts(template, generation)
    with temporary_folder(output) as folder, no_progress_bar(True):
        if form == "adapter" and adapter is not None:
            from smollit.commands.export.adapter import write_adapter  # needs peft

            model = None
            write_adapter(folder, source, adapter=adapter, weights=weights, base=model_name)
            write_tokenizer(folder, template)
        else:
            model = build_model(source, weights, wanted, adapter, None if is_sharded(policy) else unwrap(policy))
            write_folder(folder, model, template=template, source=generation)
        card = model_card(
            run, model_name=model_name, config=source, name=name or output.name, form=form, stop_texts=texts
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
        write_certificate(folder, model, source=model_name, template=template, run=run, stop_texts=texts)
        replace_folder(folder, output)
    log.info("exported %s (%s): read back and verified", output, str(wanted).removeprefix("torch."))


def write_folder(folder: Path, model: PreTrainedModel, *, template: ChatTemplate, source: GenerationConfig) -> None:
    """Model and tokenizer in Hugging Face format, read back and compared.

    Args:
        folder: An empty folder.
        model: The model to write.
        template: Its chat template and tokenizer.
        source: The generation settings of the model that training started from.
    """
    tokenizer = write_tokenizer(folder, template)
    set_generation(model, tokenizer, template=template, source=source)
    model.save_pretrained(folder)
    spell_config(folder)
    compare(folder, model, template)
    folder.chmod(0o755)  # mkdtemp makes it private


def whole_weights(policy: nn.Module) -> dict[str, Tensor]:
    """All weights under transformers' names, on the CPU, gathered from all ranks where they are sharded."""
    if is_sharded(policy):
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state: dict[str, Any] = get_model_state_dict(policy, options=options)
    else:
        state = dequantized(policy, policy.state_dict())
    return {name.removeprefix(PREFIX): tensor.detach().cpu() for name, tensor in state.items()}


def pick_dtype(choice: ExportDtype, source: PretrainedConfig) -> torch.dtype:
    """The requested dtype, or that of the source checkpoint, or fp32 if that names none."""
    if choice != "auto":
        return DTYPES[choice]
    return source.dtype if isinstance(source.dtype, torch.dtype) else DTYPES.get(str(source.dtype), torch.float32)


def build_model(
    config: PretrainedConfig,
    weights: dict[str, Tensor],
    dtype: torch.dtype,
    adapter: Adapter | None = None,
    policy: CausalLM | None = None,
) -> PreTrainedModel:
    """A transformers model with these weights, ready to serve: tied, cached, in eval mode.

    Args:
        config: Configuration of the model that training started from: the policy's may have another dropout.
        weights: The weights under transformers' names.
        dtype: dtype of the result.
        adapter: The adapter in the weights, which is merged in fp32.
        policy: The policy that the merged model is compared with; None where its weights are sharded.

    Raises:
        RuntimeError: If the merged model is another one than the trained one.
    """
    config = type(config).from_dict(config.to_dict())
    config.dtype = dtype
    config.use_cache = True
    if adapter is not None:
        from smollit.commands.export.adapter import merged_weights  # needs peft

        empty = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        weights = merged_weights(empty, adapter, weights, policy)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)  # its rotary frequencies stay in fp32
    model.load_state_dict(weights)
    model.tie_weights()
    return model.eval()


def write_tokenizer(folder: Path, template: ChatTemplate) -> PreTrainedTokenizerBase:
    """Write the finished tokenizer, and return it."""
    tokenizer = finish_tokenizer(template)
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:
        if "os error" not in str(error):  # what a disk refuses is a bare Exception of tokenizers
            raise
        raise OSError(str(error)) from error
    spell_tokenizer(folder, tokenizer)
    return tokenizer


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
