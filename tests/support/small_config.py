"""Published configurations made small: every kind of layer and every feature stays, sizes do not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from transformers import AutoConfig

VOCABULARY = 260  # bytes, a token at either end, and others
CONTEXT = 256
WINDOW = 12  # tokens; the ladder's texts are longer

_PARTS = ("text_config", "llm_config")  # where a vision-language model describes its language model
_EXPERT_COUNTS = ("n_routed_experts", "num_experts", "num_local_experts")
# Sizes, by the name of the field. Widths are multiples of 32, so that groups of 32 divide them.
_SIZES: dict[str, Callable[[int], int]] = {
    "vocab_size": lambda _: VOCABULARY,
    "hidden_size": lambda _: 128,
    "intermediate_size": lambda _: 192,
    "moe_intermediate_size": lambda _: 64,
    "shared_expert_intermediate_size": lambda size: 64 if size else 0,
    "shared_intermediate_size": lambda size: 64 if size else 0,
    "num_attention_heads": lambda heads: min(heads, 4),
    "head_dim": lambda size: size // 4,
    "rotary_dim": lambda size: size // 4,
    "q_lora_rank": lambda _: 64,
    "kv_lora_rank": lambda _: 64,
    "qk_nope_head_dim": lambda size: size // 4,
    "qk_rope_head_dim": lambda size: size // 4,
    "qk_head_dim": lambda size: size // 4,
    "v_head_dim": lambda size: size // 4,
    "num_experts_per_tok": lambda top_k: min(top_k, 3),
    "experts_per_token": lambda top_k: min(top_k, 3),
    "n_group": lambda groups: 4 if groups > 1 else groups,
    "topk_group": lambda groups: 2 if groups > 1 else groups,
    "first_k_dense_replace": lambda layers: min(layers, 1),
    "num_nextn_predict_layers": lambda layers: min(layers, 1),
    "sliding_window": lambda _: WINDOW,
    "index_topk": lambda _: 64,
    "index_n_heads": lambda _: 4,
    "index_head_dim": lambda size: size // 4,
    "sliding_window_size": lambda _: WINDOW,
    "swa_num_attention_heads": lambda heads: min(heads, 4),
    "swa_head_dim": lambda size: size // 4,
    "swa_v_head_dim": lambda size: size // 4,
    "mamba_num_heads": lambda heads: 4,
    "mamba_head_dim": lambda size: size // 4,
    "ssm_state_size": lambda size: size // 4,
    "n_groups": lambda groups: 2,
    "moe_latent_size": lambda size: 96,
    "moe_shared_expert_intermediate_size": lambda size: 96,
    "linear_num_key_heads": lambda heads: 2,
    "linear_num_value_heads": lambda heads: 4,
    "linear_key_head_dim": lambda size: size // 4,
    "linear_value_head_dim": lambda size: size // 4,
}
_VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_heads": 2,
    "num_hidden_layers": 1,
    "depth": 1,
    "head_dim": 16,
    "out_hidden_size": 128,
    "num_position_embeddings": 16,
    "image_size": 56,
    "deepstack_visual_indexes": [0],
    "vt_hidden_size": 32,
    "vt_intermediate_size": 64,
    "vt_num_attention_heads": 2,
    "vt_num_hidden_layers": 1,
    "mm_hidden_size": 32,
    "text_hidden_size": 128,
    "init_pos_emb_height": 4,
    "init_pos_emb_width": 4,
}
_TOKENS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}


def small_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` at a size that a test computes with, without what says how weights are quantized."""
    small = {key: value for key, value in config.items() if key not in ("quantization_config", "auto_map")}
    for part in _PARTS:
        if part in small:
            small[part] = small_config(small[part])
    if "vision_config" in small:
        vision = small["vision_config"]
        own = vision.keys() | {key.removeprefix("vt_") for key in vision}  # Kimi's, which transformers calls otherwise
        small["vision_config"] = vision | {key: value for key, value in _VISION.items() if key in own}
    for name, token in _TOKENS.items():
        if small.get(name) is not None:
            small[name] = [token] if isinstance(small[name], list) else token
    for name in small:
        if name.endswith(("_token_id", "_token_index")) and name not in _TOKENS:
            small[name] = VOCABULARY - 1
    return _layers(_rotary(_sizes(small))) if "hidden_size" in small else small


def _sizes(config: dict[str, Any]) -> dict[str, Any]:
    small = dict(config)
    for name, made in _SIZES.items():
        if isinstance(config.get(name), int):
            small[name] = made(config[name])
    for name in _EXPERT_COUNTS:  # in groups, too, some can be pruned
        if config.get(name):
            small[name] = 16 if (config.get("n_group") or 1) > 1 else 8
    heads = config["num_attention_heads"]
    if isinstance(key_value := config.get("num_key_value_heads"), int):
        small["num_key_value_heads"] = max(1, key_value * small["num_attention_heads"] // heads)
        if of_windows := config.get("swa_num_key_value_heads"):
            small["swa_num_key_value_heads"] = small["num_key_value_heads"] * of_windows // key_value
    if not config.keys() & {"head_dim", "kv_lora_rank"}:  # a head's size follows from the model's
        small["hidden_size"] = config["hidden_size"] // heads // 4 * small["num_attention_heads"]
    return small


def _rotary(config: dict[str, Any]) -> dict[str, Any]:
    """The original context is short where the scaling does not depend on the length of a text."""
    small = dict(config)
    for name in ("rope_scaling", "rope_parameters"):
        scaling = config.get(name)
        if not isinstance(scaling, dict):
            continue
        scaling = dict(scaling)
        if factors := [key for key in ("short_factor", "long_factor") if key in scaling]:
            for key in factors:
                scaling[key] = scaling[key][::4]
        elif "original_max_position_embeddings" in scaling:
            scaling["original_max_position_embeddings"] = CONTEXT // 4
        small[name] = scaling
    if "max_position_embeddings" in config and not isinstance(config.get("original_max_position_embeddings"), int):
        small["max_position_embeddings"] = CONTEXT
    return small


def _layers(config: dict[str, Any]) -> dict[str, Any]:
    """As many layers as it takes to have one of each kind, and what is said layer by layer shortened to them."""
    count = config.get("num_hidden_layers") or len(config["layers_block_type"])
    config = {**config, "num_hidden_layers": count}
    lists = {key: value for key, value in config.items() if isinstance(value, list) and len(value) >= count}
    if "hybrid_override_pattern" in config:
        lists["hybrid_override_pattern"] = config["hybrid_override_pattern"]
    said = [each[:count] for each in [*lists.values(), _layer_types(config)] if each]
    kinds = [str(kind) for kind in zip(*said, strict=True)]
    all_kinds = max((kinds.index(kind) + 1 for kind in kinds), default=0)
    few = max(2 + bool(config.get("first_k_dense_replace")), all_kinds)
    small = config | {key: value[:few] + value[count:] for key, value in lists.items()}
    return small | {"num_hidden_layers": few} | ({"max_window_layers": few} if "max_window_layers" in config else {})


def _layer_types(config: dict[str, Any]) -> list[str]:
    """What transformers makes each layer, where it knows the architecture and says so."""
    try:
        made = AutoConfig.for_model(**config)
    except (ValueError, KeyError, TypeError):
        return []
    return (getattr(made, "layer_types", None) or [])[: config["num_hidden_layers"]]
