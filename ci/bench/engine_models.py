"""Small quantized checkpoints for benchmarks of engines: random weights, rounded to nearest."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from synthesize import CONFIGS, synthesize

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.formats import DEFAULT_LAYOUT
from llmc.quant.assign import Rule
from llmc.quant.layerwise import QuantizeOptions, quantize

_SIZES = {"vocab_size": 512, "hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2}
_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": CONFIGS["dense"] | _SIZES | _HEADS,
    "qwen2": CONFIGS["dense"] | _SIZES | _HEADS | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"},
    "deepseek_v3": CONFIGS["moe"]
    | _SIZES
    | {
        "moe_intermediate_size": 256,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 16,
        "v_head_dim": 64,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "first_k_dense_replace": 1,
        "num_nextn_predict_layers": 1,
    },
}


def quantized(config: dict[str, Any], roles: dict[str, str], directory: Path, fp8_cache: bool = False) -> Checkpoint:
    """{role: scheme}; `directory` is emptied. Groups in act-order only exist in GPTQ's layout."""
    shutil.rmtree(directory, ignore_errors=True)
    source = synthesize(config, directory / "source")
    # Only GPTQ puts channels in another order.
    rules = [Rule(role, scheme, "gptq" if scheme.endswith("-actorder") else "rtn") for role, scheme in roles.items()]
    ids = torch.arange(64).reshape(2, 32)
    actorder = any(scheme.endswith("-actorder") for scheme in roles.values())
    options = QuantizeOptions(fp8_cache=fp8_cache, layout="gptq" if actorder else DEFAULT_LAYOUT)
    output = directory / "artifact"
    output.mkdir()
    quantize(Checkpoint.open(source), rules, None, ids, ids, output, directory / "work", lambda *_: None, options)
    return Checkpoint.open(output)
