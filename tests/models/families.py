"""Tiny random models of many families, for tests and for docs/models.md."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

BASE: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WINDOW = 5
MIXED = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
# name: model type of transformers, and the settings besides BASE.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama, SmolLM, SmolLM2": ("llama", {}),
    "SmolLM3": ("smollm3", {}),
    "Mistral": ("mistral", {"sliding_window": None}),
    "Mistral with a window": ("mistral", {"sliding_window": WINDOW}),
    "Mixtral": ("mixtral", {"sliding_window": None, **EXPERTS}),
    "Qwen2": ("qwen2", {}),
    "Qwen2 with windows": ("qwen2", {"use_sliding_window": True, **MIXED}),
    "Qwen3": ("qwen3", {}),
    "Qwen3-MoE": ("qwen3_moe", {"mlp_only_layers": [], **EXPERTS}),
    "Gemma": ("gemma", {}),
    "Gemma 2": (
        "gemma2",
        {"query_pre_attn_scalar": 8, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0, **MIXED},
    ),
    "Gemma 3": ("gemma3_text", {"query_pre_attn_scalar": 8, **MIXED}),
    "Phi-2": ("phi", {"num_key_value_heads": 4}),
    "Phi-3": ("phi3", {"num_key_value_heads": 4}),
    "DeepSeek-V3": (
        "deepseek_v3",
        {
            "head_dim": 4,
            "q_lora_rank": 8,
            "kv_lora_rank": 8,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 4,
            "v_head_dim": 8,
            "n_routed_experts": 4,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "num_key_value_heads": 4,
            **EXPERTS,
        },
    ),
    "OLMo 2": ("olmo2", {}),
    "OLMo 3": ("olmo3", MIXED),
    "Granite": ("granite", {"logits_scaling": 4.0, "embedding_multiplier": 2.0, "residual_multiplier": 0.5}),
    "Cohere": ("cohere", {"logit_scale": 0.25}),
    "Cohere 2": ("cohere2", {"logit_scale": 0.25, **MIXED}),
    "GLM-4": ("glm4", {"partial_rotary_factor": 0.5}),
    "Ernie 4.5": ("ernie4_5", {}),
    "Starcoder 2": ("starcoder2", {"sliding_window": None}),
    "StableLM": ("stablelm", {}),
    "Nemotron": ("nemotron", {}),
    "Helium": ("helium", {}),
    "GPT-2": ("gpt2", {}),
    "GPT-NeoX": ("gpt_neox", {}),
    "OPT": ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "gpt-oss": ("gpt_oss", {**EXPERTS, **MIXED}),
    "BLOOM": ("bloom", {}),
    "GPT-J": ("gptj", {"rotary_dim": 4}),
    "LFM2": ("lfm2", {"layer_types": ["conv", "full_attention"], "block_ff_dim": 48}),
    "Mamba": ("mamba", {}),
    "Mamba 2": ("mamba2", {"expand": 2, "num_heads": 8, "state_size": 8, "n_groups": 1, "chunk_size": 8}),
    "Falcon-H1": (
        "falcon_h1",
        {
            "mamba_d_ssm": 32,
            "mamba_n_heads": 4,
            "mamba_d_head": 8,
            "mamba_n_groups": 1,
            "mamba_d_state": 8,
            "mamba_chunk_size": 8,
            "lm_head_multiplier": 0.5,
        },
    ),
    "Qwen3-Next": (
        "qwen3_next",
        {
            "layer_types": ["linear_attention", "full_attention"],
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "shared_expert_intermediate_size": 16,
            "decoder_sparse_step": 1,
            **EXPERTS,
        },
    ),
}


def save_family(name: str, folder: Path) -> Path:
    """A folder with a random tiny model of a family."""
    model_type, settings = FAMILIES[name]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **{**BASE, **settings}))
    with torch.no_grad():
        for parameter in model.parameters():  # heads' biases and norms too: zeros would hide that they are left out
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder
