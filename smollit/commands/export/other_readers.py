"""Spells an export's configuration so that transformers 4 and the servers that pin it read the same model.

transformers 5 writes some settings under new names only. transformers 4.57 then takes defaults in silence (a rotary
base of 10,000) or can't load the tokenizer at all. So each such setting is written in both spellings.
"""

import json
import logging
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedTokenizerBase

log = logging.getLogger(__name__)
Settings = dict[str, Any]
OLD_NAMES = {"gpt_neox": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}}
# What transformers 5 writes about how the tokenizer was loaded, not about the tokenizer.
LOADING = ("backend", "is_local", "local_files_only")


def spell_config(folder: Path) -> None:
    """Add the old spellings to config.json, unless this version of transformers then reads another configuration."""
    path = folder / "config.json"
    written, config = _read(path), AutoConfig.from_pretrained(folder)
    aliases = {old: written[new] for old, new in config.attribute_map.items() if new in written}  # num_experts
    _write(path, aliases | written | old_rope_settings(written))
    if not _is_within(config.to_diff_dict(), AutoConfig.from_pretrained(folder).to_dict()):
        _write(path, written)
        log.warning(
            "%s: the rope settings of this %s model have no old spelling: transformers 4 may read others",
            path,
            config.model_type,
        )


def spell_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Rewrite tokenizer_config.json: tokenizer.json is the whole tokenizer, whatever class wrote it."""
    path = folder / "tokenizer_config.json"
    settings = {name: value for name, value in _read(path).items() if name not in LOADING}
    more = settings.pop("extra_special_tokens", [])  # a list in version 5, a dict of named tokens in version 4
    if more:
        settings["additional_special_tokens"] = more
    if named := settings.pop("model_specific_special_tokens", None):
        settings["extra_special_tokens"] = named
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    settings["chat_template"] = tokenizer.chat_template  # some servers do not look into chat_template.jinja
    settings["model_input_names"] = tokenizer.model_input_names  # else version 4 adds token types, which no Llama takes
    settings["clean_up_tokenization_spaces"] = bool(tokenizer.clean_up_tokenization_spaces)
    _write(path, settings)


def old_rope_settings(config: Settings) -> Settings:
    """`rope_theta`, `rope_scaling` and their like, as transformers 4.57 reads them, from `rope_parameters`."""
    rope: Settings = config.get("rope_parameters") or {}
    full: Settings = rope.get("full_attention", rope)  # some families have other parameters for sliding layers
    if "rope_theta" not in full:
        return {}
    kept = ("rope_theta", "partial_rotary_factor")
    old = {name: full[name] for name in kept if name in full}
    scaling = {name: value for name, value in full.items() if name not in kept}
    if scaling.get("rope_type") == "longrope":  # Phi-3 accepts exactly these
        scaling = {"type": "longrope", **{name: full[name] for name in ("short_factor", "long_factor")}}
    if scaling.get("rope_type", "longrope") != "default":
        old["rope_scaling"] = scaling
    if "sliding_attention" in rope:
        old["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
    names = OLD_NAMES.get(config["model_type"], {})
    return {names.get(name, name): value for name, value in old.items()}


def _is_within(settings: Any, others: Any) -> bool:
    """Whether all settings are among the others, with the same values."""
    if isinstance(settings, dict) and isinstance(others, dict):
        return all(name in others and _is_within(value, others[name]) for name, value in settings.items())
    return bool(settings == others)


def _read(path: Path) -> Settings:
    settings: Settings = json.loads(path.read_text(encoding="utf-8"))
    return settings


def _write(path: Path, settings: Settings) -> None:
    path.write_text(json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
