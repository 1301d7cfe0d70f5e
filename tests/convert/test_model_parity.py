"""Our torch blocks against transformers' own classes, on the same files."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from random_checkpoint import DEEPSEEK_V3, LLAMA, QWEN2, random_checkpoint
from transformers import AutoModelForCausalLM

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.model import CausalLM

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


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_transformers(tmp_path: Path, name: str) -> None:
    path = random_checkpoint(tmp_path, CASES[name])
    ids = torch.randint(0, 96, (2, 100), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)(ids).logits
    model = CausalLM.load(Checkpoint.open(path))
    assert error(expected, model.logits(model.hidden(ids))) < TOLERANCE
    short = ids[:, :24]
    assert error(expected[:, :24], model.logits(stepwise(model, short))) < TOLERANCE
    if name.startswith("deepseek"):
        for layer in model.layers:
            layer.self_attn.form = "absorbed"
        assert error(expected, model.logits(model.hidden(ids))) < TOLERANCE
        assert error(expected[:, :24], model.logits(stepwise(model, short))) < TOLERANCE


@pytest.mark.parametrize("config", [DEEPSEEK_V3 | yarn(mscale=1.0, mscale_all_dim=1.0), LLAMA, QWEN2])
def test_reads_what_transformers_writes(tmp_path: Path, config: dict[str, Any]) -> None:
    """The transformers 5 dialect of config.json: `rope_parameters`, `dtype`."""
    path = random_checkpoint(tmp_path / "theirs", config | {"num_nextn_predict_layers": 0})
    witness = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    witness.save_pretrained(tmp_path / "saved")
    ids = torch.arange(60)[None]
    with torch.no_grad():
        expected = witness(ids).logits
    model = CausalLM.load(Checkpoint.open(tmp_path / "saved"))
    assert error(expected, model.logits(model.hidden(ids))) < TOLERANCE


def test_embedded_checkpoint_equals_transformers() -> None:
    ids = torch.randint(0, 4096, (2, 160), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(EMBEDDED, dtype=torch.float32)(ids).logits
    model = CausalLM.load(Checkpoint.open(EMBEDDED))
    assert error(expected, model.logits(model.hidden(ids))) < TOLERANCE
    for layer in model.layers:
        layer.self_attn.form = "absorbed"
    assert error(expected[:, :40], model.logits(stepwise(model, ids[:, :40]))) < TOLERANCE


def test_bfloat16_stays_close(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(random_checkpoint(tmp_path, LLAMA))
    ids = torch.arange(60)[None]
    exact, rounded = CausalLM.load(checkpoint), CausalLM.load(checkpoint, torch.bfloat16)
    assert rounded.hidden(ids).dtype == torch.bfloat16
    assert error(exact.logits(exact.hidden(ids)), rounded.logits(rounded.hidden(ids))) < 0.05


def test_rolling_the_cache_back_forgets(tmp_path: Path) -> None:
    model = CausalLM.load(Checkpoint.open(random_checkpoint(tmp_path, DEEPSEEK_V3)))
    ids = torch.arange(40)[None]
    caches = model.new_cache(1, 40)
    model.hidden(ids[:, :30], caches)
    for cache in caches:
        cache.length = 20
    again = model.hidden(ids[:, 20:], caches)
    assert error(model.hidden(ids)[:, 20:], again) < TOLERANCE
