"""Where an export stops generating, and which generation settings of its source it keeps."""

import logging

from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from smollit.data.template.template import ChatTemplate

log = logging.getLogger(__name__)
# Without effect while `do_sample` is off: transformers refuses to save them then.
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
# Bookkeeping of transformers, and what the template and the tokenizer decide.
OURS = ("transformers_version", "use_cache", "bos_token_id", "eos_token_id", "pad_token_id", "stop_strings")


def source_generation(model_name: str, config: PretrainedConfig) -> GenerationConfig:
    """The generation settings of the model that training started from, or only the stop tokens of its config."""
    try:
        return GenerationConfig.from_pretrained(model_name)
    except OSError:  # it has no generation_config.json
        return GenerationConfig(eos_token_id=config.eos_token_id)


def set_generation(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, template: ChatTemplate, source: GenerationConfig
) -> None:
    """Stop at the end of the turn as well as where the source did, and agree with the tokenizer everywhere."""
    stops = list(dict.fromkeys([*template.stop_ids(), *_as_list(source.eos_token_id)]))
    model.config.eos_token_id = stops[0] if stops else None
    model.config.bos_token_id = tokenizer.bos_token_id
    model.config.pad_token_id = tokenizer.pad_token_id
    model.generation_config = GenerationConfig(
        **kept_settings(source),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=stops or None,
        pad_token_id=tokenizer.pad_token_id,
    )


def stop_texts(template: ChatTemplate, source: GenerationConfig) -> list[str]:
    """Texts that end a response where no single token does: an end marker of several tokens, and those of the source.

    They are not generation settings of the export: `generate` and `pipeline` refuse them without a tokenizer.
    """
    turn_end = template.turn_end()
    is_one_token = bool(turn_end) and len(template.encode([turn_end])[0]) == 1
    ours = [] if is_one_token or not turn_end else [turn_end]
    return list(dict.fromkeys([*map(str, _as_list(source.stop_strings)), *ours]))


def kept_settings(source: GenerationConfig) -> dict[str, object]:
    """The settings of the source that transformers accepts together; says which are kept, and which are not."""
    given = source.to_diff_dict().items()
    settings = {
        name: value for name, value in given if value not in (None, False) and name not in OURS and name[0] != "_"
    }
    unused = [name for name in SAMPLING if name in settings and not settings.get("do_sample")]
    kept = {name: value for name, value in settings.items() if name not in unused}
    try:
        GenerationConfig(**kept).validate(strict=True)
    except ValueError as error:
        unused, kept = list(settings), {}
        log.warning("generation settings of the source are not valid together: %s", error)
    if kept:
        log.info("generation settings kept from the source: %s", _listed(kept))
    if unused:
        log.info("generation settings of the source without effect are left out: %s", ", ".join(unused))
    return kept


def _listed(settings: dict[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def _as_list(value: object) -> list[object]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
