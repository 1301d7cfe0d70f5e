"""Variants of the architectures that the torch blocks know, and how far numbers may lie from transformers'."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from llmc.convert.model import CausalLM
from support.random_checkpoint import DEEPSEEK_V3, LLAMA, QWEN2

EMBEDDED = Path(__file__).parents[2] / "recipes" / "checkpoints" / "tiny-deepseek-v3"
TOLERANCE = 1e-4


def yarn(**changes: Any) -> dict[str, Any]:
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    return {"rope_scaling": scaling | {"beta_fast": 32, "beta_slow": 1} | changes}


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CASES: dict[str, dict[str, Any]] = {
    "deepseek": DEEPSEEK_V3,
    "deepseek full-rank query": DEEPSEEK_V3 | {"q_lora_rank": None},
    "deepseek one group": DEEPSEEK_V3 | {"n_group": 1, "topk_group": 1},
    "deepseek all experts": DEEPSEEK_V3 | {"num_experts_per_tok": 8, "topk_group": 4},
    "deepseek unnormalized": DEEPSEEK_V3 | {"norm_topk_prob": False, "routed_scaling_factor": 1.0},
    "deepseek two shared": DEEPSEEK_V3 | {"n_shared_experts": 2, "first_k_dense_replace": 0},
    "deepseek all dense": DEEPSEEK_V3 | {"first_k_dense_replace": 3, "num_nextn_predict_layers": 0},
    "deepseek biases, tied": DEEPSEEK_V3 | {"attention_bias": True, "tie_word_embeddings": True},
    "deepseek rotary halves": DEEPSEEK_V3 | {"rope_interleave": False},
    "deepseek wide value": DEEPSEEK_V3 | {"v_head_dim": 40},
    "deepseek eps": DEEPSEEK_V3 | {"rms_norm_eps": 1e-2},
    "deepseek yarn": DEEPSEEK_V3 | yarn(mscale=1.0, mscale_all_dim=1.0),
    "deepseek yarn, mscales": DEEPSEEK_V3 | yarn(mscale=0.707, mscale_all_dim=1.4),
    "deepseek yarn, no mscale": DEEPSEEK_V3 | yarn(),
    "llama": LLAMA,
    "llama one kv head": LLAMA | {"num_key_value_heads": 1},
    "llama biases, tied": LLAMA | {"attention_bias": True, "tie_word_embeddings": True},
    "llama head_dim": LLAMA | {"head_dim": 24},
    "llama linear": LLAMA | {"rope_scaling": {"type": "linear", "factor": 2.0}},
    "llama llama3": LLAMA | {"rope_scaling": LLAMA3},
    "llama yarn": LLAMA | yarn(attention_factor=0.9),
    "qwen2": QWEN2,
    "qwen2 tied": QWEN2 | {"tie_word_embeddings": True, "num_key_value_heads": 8},
}


def error(expected: torch.Tensor, got: torch.Tensor) -> float:
    """Largest difference, relative to the largest expected value."""
    return ((expected - got).abs().max() / expected.abs().max()).item()


def stepwise(model: CausalLM, ids: torch.Tensor) -> torch.Tensor:
    """Hidden states through the cache: a prefill, a second chunk, then token by token."""
    caches = model.new_cache(ids.shape[0], ids.shape[1])
    cuts = [0, 9, 17, *range(18, ids.shape[1] + 1)]
    return torch.cat([model.hidden(ids[:, a:b], caches) for a, b in pairwise(cuts)], dim=1)
