"""Small quantized checkpoints, written by the same code as real ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from llmc.convert.checkpoint import Checkpoint
from llmc.quant.assign import Rule
from llmc.quant.layerwise import QuantizeOptions, quantize
from support.random_checkpoint import DEEPSEEK_V3, LLAMA, QWEN2, random_weights, write_checkpoint

# Input widths that the int4 groups divide; kv_a_proj_with_mqa has 80 rows, less than one FP8 block.
DEEPSEEK = DEEPSEEK_V3 | {
    "hidden_size": 128,
    "intermediate_size": 192,
    "moe_intermediate_size": 64,
    "q_lora_rank": 64,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
}
DENSE = {"hidden_size": 128, "intermediate_size": 192}
# name: config, {role: scheme}, options; what is not named keeps its bfloat16.
CASES: dict[str, tuple[Any, ...]] = {
    "deepseek": (DEEPSEEK, {"experts": "int4-g64", "shared_experts": "int4-g32", "attention": "fp8-block"}),
    "deepseek, all int4": (
        DEEPSEEK,
        dict.fromkeys(("experts", "shared_experts", "dense_mlp", "attention", "kv_b_proj", "mtp"), "int4-g32"),
    ),
    "deepseek, all fp8": (
        DEEPSEEK,
        {"experts": "fp8-block", "attention": "fp8-channel", "kv_b_proj": "fp8-block", "mtp": "fp8-channel"},
    ),
    "deepseek, bfloat16": (DEEPSEEK, {}),
    "deepseek, unnormalized": (
        DEEPSEEK | {"norm_topk_prob": False, "q_lora_rank": None, "num_nextn_predict_layers": 0},
        {"experts": "int4-g64"},
    ),
    "deepseek, other integers": (
        DEEPSEEK,
        {
            "experts": "int8-g32",
            "shared_experts": "int2-g32",
            "dense_mlp": "int3-g64",
            "attention": "int4-g32-asym",
            "kv_b_proj": "int8-channel",
            "mtp": "int6-g32",
        },
    ),
    "deepseek, zero points": (DEEPSEEK, {"experts": "int4-g32-asym", "attention": "int8-g64-asym"}),
    "llama, channels": (LLAMA | DENSE, {"dense_mlp": "int4-channel", "attention": "int3-g64-asym"}),
    "llama": (LLAMA | DENSE, {"dense_mlp": "int4-g64", "attention": "fp8-channel"}),
    "deepseek, static inputs and an FP8 cache": (
        DEEPSEEK,
        {"attention": "fp8-tensor-static", "dense_mlp": "fp8-channel-static", "shared_experts": "fp8-tensor"},
        QuantizeOptions(fp8_cache=True),
    ),
    "llama, dynamic inputs and an FP8 cache": (
        LLAMA | DENSE | {"intermediate_size": 256},
        {"attention": "fp8-channel-dynamic", "dense_mlp": "fp8-block-dynamic"},
        QuantizeOptions(fp8_cache=True),
    ),
    "deepseek, GPTQ layout": (
        DEEPSEEK,
        {
            "experts": "int4-g32",
            "shared_experts": "int4-g32-asym-actorder",
            "attention": "int8-g64",
            "kv_b_proj": "int4-g64",
        },
        QuantizeOptions(layout="gptq"),
    ),
    "deepseek, DeepSeek's layout": (DEEPSEEK, {"attention": "fp8-block"}, QuantizeOptions(layout="native-fp8")),
    "qwen2, tied": (
        QWEN2 | DENSE | {"tie_word_embeddings": True, "head_dim": 24},
        {"dense_mlp": "fp8-block", "attention": "int4-g32"},
    ),
}


EXACT = 1e-9  # KL divergence that float32 in another order of summation stays below: it leaves 1e-12
ROUNDED = 3e-2  # the same where it may turn an activation that is rounded to 8 bits, or a target rounds none (0.012)


def limit_of(checkpoint: Checkpoint) -> float:
    """Of the divergence of an exact graph of this model."""
    modules = (name.removesuffix(".weight") for name in checkpoint.names())
    return ROUNDED if checkpoint.spec.fp8_cache or any(map(checkpoint.activations, modules)) else EXACT


def quantized_checkpoint(
    directory: Path,
    config: dict[str, Any],
    schemes: dict[str, str],
    options: QuantizeOptions = QuantizeOptions(),  # noqa: B008  # immutable
) -> Checkpoint:
    """A random model in bfloat16, its roles rounded to nearest by their schemes."""
    weights = {name: weight.bfloat16() for name, weight in random_weights(config).items()}
    source = write_checkpoint(directory / "source", config, weights)
    return quantized_copy(Checkpoint.open(source), schemes, directory, options)


def quantized_copy(
    source: Checkpoint,
    schemes: dict[str, str],
    directory: Path,
    options: QuantizeOptions = QuantizeOptions(),  # noqa: B008  # immutable
) -> Checkpoint:
    """Rounded to nearest by {role: scheme}."""
    ids = torch.arange(64).reshape(2, 32)
    quantize(
        source,
        [Rule(role, scheme, "rtn") for role, scheme in schemes.items()],
        None,
        ids,
        ids,
        directory / "artifact",
        directory / "work",
        lambda *_: None,
        options,
    )
    return Checkpoint.open(directory / "artifact")
