"""config.json of the model that lies in a GGUF file, from the file's metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmc.convert.families import family_of
from llmc.convert.families.rope import yarn_mscale
from llmc.convert.gguf.architectures import frequency_factors
from llmc.convert.gguf.file import GgufFile
from llmc.errors import InputError

_ARCHITECTURES = ("llama", "qwen2", "qwen3", "qwen3moe", "deepseek2")
_SIGMOID = 2  # gguf.ExpertGatingFuncType
# Llama 3.1's rotation: files hold what frequencies are divided by, and not the four numbers that this follows from.
_LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_LLAMA3_CONTEXT = 8192
_TOLERANCE = 1e-3
Config = dict[str, Any]


# What other files say, and these families compute otherwise; and the value that changes nothing.
_UNREAD = {"expert_weights_scale": (0, 1), "rope.scaling.attn_factor": (1,), "rope.scale_linear": (1,)}


class _Metadata:
    """What a file says under its architecture's name."""

    def __init__(self, file: GgufFile) -> None:
        self.file, self.architecture = file, str(file.metadata.get("general.architecture"))

    def __call__(self, name: str, default: Any = None) -> Any:
        key = f"{self.architecture}.{name}"
        value = self.file.metadata.get(key, default)
        if value is None:
            raise InputError(f"{self.file.path}: `{key}` is missing; it is no complete GGUF file")
        if isinstance(value, list) and len(set(value)) == 1:
            return value[0]
        return value

    def require_unsaid(self, name: str) -> None:
        """InputError where the file says something that is not read and changes what is computed."""
        if (value := self(name, _UNREAD[name][0])) not in _UNREAD[name]:
            raise InputError(f"{self.file.path}: `{self.architecture}.{name}` is {value}, which is not read")

    def real(self, name: str, default: Any = None) -> float:
        """A float32, as the shortest decimal that it is."""
        return float(np.format_float_positional(np.float32(self(name, default))))


def config_of(file: GgufFile) -> Config:
    """Return config.json of the model in a GGUF file.

    Raises:
        InputError: for an architecture that is not read, or a rotation that config.json has no words for
    """
    try:
        return _config_of(file)
    except (TypeError, ValueError, LookupError, ArithmeticError) as error:  # texts for numbers, a head of no channels
        raise InputError(f"{file.path}: its metadata do not fit together ({str(error)[:80]})") from error


def _config_of(file: GgufFile) -> Config:
    get = _Metadata(file)
    if get.architecture not in _ARCHITECTURES:
        raise InputError(
            f"{file.path}: `general.architecture` is {get.architecture!r}; of GGUF, {', '.join(_ARCHITECTURES)} are "
            "read"
        )
    embedding = file.tensors.get("token_embd.weight")
    config: Config = {
        "vocab_size": embedding.shape[0] if embedding else get("vocab_size"),
        "hidden_size": get("embedding_length"),
        "intermediate_size": get("feed_forward_length"),
        "num_hidden_layers": get("block_count") - get("nextn_predict_layers", 0),
        "num_attention_heads": get("attention.head_count"),
        "hidden_act": "silu",
        "max_position_embeddings": get("context_length"),
        "rms_norm_eps": get.real("attention.layer_norm_rms_epsilon"),
        "rope_theta": get.real("rope.freq_base", 10000.0),
        "tie_word_embeddings": "output.weight" not in file.tensors,
    }
    for ours, theirs in (("bos_token_id", "bos_token_id"), ("eos_token_id", "eos_token_id")):
        config[ours] = file.metadata.get(f"tokenizer.ggml.{theirs}")
    config |= _latent(get) if get.architecture == "deepseek2" else _grouped(get)
    return _with_rotation(get, config)


def _grouped(get: _Metadata) -> Config:
    heads, biases = get("attention.head_count"), "blk.0.attn_q.bias" in get.file.tensors
    head_dim = get("attention.key_length", get("embedding_length") // heads)
    if get("rope.dimension_count", head_dim) != head_dim:
        raise InputError(f"{get.file.path}: rotates a part of each head (`rope.dimension_count`), which is not read")
    get.require_unsaid("expert_weights_scale")
    config: Config = {
        "num_key_value_heads": get("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "attention_bias": biases,
    }
    if get.architecture == "llama" and get("expert_count", 0):
        return config | {
            "architectures": ["MixtralForCausalLM"],
            "model_type": "mixtral",
            "sliding_window": None,
            "num_local_experts": get("expert_count"),
            "num_experts_per_tok": get("expert_used_count"),
        }
    if get.architecture == "qwen3moe":
        return config | {
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            "num_experts": get("expert_count"),
            "num_experts_per_tok": get("expert_used_count"),
            "moe_intermediate_size": get("expert_feed_forward_length"),
            "norm_topk_prob": True,
        }
    name = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}[get.architecture]
    return config | {"architectures": [f"{name}ForCausalLM"], "model_type": get.architecture}


def _latent(get: _Metadata) -> Config:
    if f"{get.architecture}.attention.key_length_mla" not in get.file.metadata:
        raise InputError(
            f"{get.file.path}: was written before llama.cpp took kv_b_proj apart, in 2025; look for a newer file"
        )
    rotary, softmax = get("rope.dimension_count"), get("expert_gating_func", 1) != _SIGMOID
    layers, dense = get("block_count") - get("nextn_predict_layers", 0), get("leading_dense_block_count", 0)
    config: Config = {
        "architectures": ["DeepseekV2ForCausalLM" if softmax else "DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v2" if softmax else "deepseek_v3",
        "q_lora_rank": get("attention.q_lora_rank", 0) or None,
        "kv_lora_rank": get("attention.kv_lora_rank"),
        "qk_rope_head_dim": rotary,
        "qk_nope_head_dim": get("attention.key_length_mla") - rotary,
        "v_head_dim": get("attention.value_length_mla"),
        "num_key_value_heads": get("attention.head_count"),
        "first_k_dense_replace": min(dense, layers),
        "moe_intermediate_size": get("expert_feed_forward_length"),
        "n_routed_experts": get("expert_count"),
        "num_experts_per_tok": get("expert_used_count"),
        "n_shared_experts": get("expert_shared_count", 0),
        "routed_scaling_factor": get.real("expert_weights_scale", 1.0),
        "norm_topk_prob": bool(get("expert_weights_norm", False)),
        "num_nextn_predict_layers": get("nextn_predict_layers", 0),
    }
    if softmax:
        return config | {"scoring_func": "softmax", "topk_method": "greedy"}
    groups = get("expert_group_count", 1)
    config |= {"scoring_func": "sigmoid", "topk_method": "noaux_tc"}
    return config | {"n_group": groups, "topk_group": get("expert_group_used_count", groups)}


def _with_rotation(get: _Metadata, config: Config) -> Config:
    kind = get("rope.scaling.type", "none")
    factor = get.real("rope.scaling.factor", 1.0)
    if kind not in ("none", "linear", "yarn"):
        raise InputError(f"{get.file.path}: `rope.scaling.type` {kind!r} is not read")
    get.require_unsaid("rope.scale_linear")
    grouped_yarn = kind == "yarn" and get.architecture != "deepseek2"
    if not grouped_yarn:
        get.require_unsaid("rope.scaling.attn_factor")
    if "rope_freqs.weight" in get.file.tensors:
        return config | {"rope_scaling": _llama3(get.file, config)}
    if kind == "linear" and factor != 1:
        return config | {"rope_scaling": {"rope_type": "linear", "factor": factor}}
    if kind == "yarn":
        scaling: Config = {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": get("rope.scaling.original_context_length", get("context_length")),
            "beta_fast": get.real("rope.scaling.yarn_beta_fast", 32.0),
            "beta_slow": get.real("rope.scaling.yarn_beta_slow", 1.0),
        }
        if grouped_yarn and (more := get.real("rope.scaling.attn_factor", 1.0)) != 1:
            scaling["attention_factor"] = more * yarn_mscale(factor)
        if log_mul := get("rope.scaling.yarn_log_multiplier", 0.0):  # llama.cpp has it times 0.1
            scaling |= dict.fromkeys(("mscale", "mscale_all_dim"), round(10 * log_mul, 6))
        return config | {"rope_scaling": scaling}
    return config


def _llama3(file: GgufFile, config: Config) -> Config:
    """The rotation whose frequencies are divided as this file says."""
    factors = file.values("rope_freqs.weight")
    for length in (_LLAMA3_CONTEXT, config["max_position_embeddings"]):
        scaling = _LLAMA3 | {"factor": round(max(factors), 4), "original_max_position_embeddings": length}
        full: Mapping[str, Any] = config | {"rope_scaling": scaling}
        rope = family_of(dict(full)).spec(dict(full)).attentions[0].rope
        assert rope is not None
        if np.allclose(frequency_factors(rope), factors, rtol=_TOLERANCE):
            return scaling
    raise InputError(
        f"{file.path}: its frequencies are divided otherwise than Llama 3.1's; use the checkpoint that it was made from"
    )
