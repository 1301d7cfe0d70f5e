"""Sizes that no well-known model has: whatever opens as a checkpoint becomes a graph that ONNX Runtime runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.graph_session import GraphSession, divergences
from support.quantized_checkpoint import limit_of, quantized_checkpoint
from support.random_checkpoint import DEEPSEEK_V3, LLAMA, QWEN2

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.model import CausalLM
from llmc.convert.targets import target
from llmc.quant.layerwise import QuantizeOptions

DENSE = LLAMA | {"num_hidden_layers": 1, "num_attention_heads": 3, "vocab_size": 101}
MIXED = DEEPSEEK_V3 | {"num_hidden_layers": 2, "num_nextn_predict_layers": 0}
QWEN = QWEN2 | {"num_hidden_layers": 1, "num_attention_heads": 3, "num_key_value_heads": 3}
MLP, ATTENTION = {"dense_mlp": "int4-g32"}, {"attention": "fp8-channel"}
# name: config, {role: scheme}, options
CASES: dict[str, tuple[Any, ...]] = {
    f"heads of {size}": (DENSE | {"head_dim": size, "num_key_value_heads": 1 + size // 4 % 2 * 2}, ATTENTION)
    for size in (2, 10, 12, 36, 80, 96, 100, 264)
} | {
    "heads of 100, biases": (QWEN | {"head_dim": 100}, ATTENTION),
    "heads of 12, FP8 cache": (DENSE | {"head_dim": 12, "num_key_value_heads": 1}, {}, QuantizeOptions(fp8_cache=True)),
    "heads of 24, FP8 cache": (DENSE | {"head_dim": 24, "num_key_value_heads": 1}, {}, QuantizeOptions(fp8_cache=True)),
    "hidden 36, MLP of 33": (DENSE | {"hidden_size": 36, "intermediate_size": 33, "head_dim": 16} | {
        "num_key_value_heads": 3}, {"attention": "fp8-block", "dense_mlp": "fp8-tensor"}),
    "groups of 32, nothing else": (DENSE | {"hidden_size": 96, "intermediate_size": 160, "head_dim": 32} | {
        "num_key_value_heads": 3}, MLP | {"attention": "int4-g32-asym"}),
    "experts of 33": (MIXED | {"moe_intermediate_size": 33, "hidden_size": 36}, {"experts": "fp8-channel"}),
    "experts of 160": (MIXED | {"moe_intermediate_size": 160, "hidden_size": 96}, {"experts": "int4-channel"}),
    "5 experts": (MIXED | {"n_routed_experts": 5, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 5}, {}),
    "latents of 7 and 3": (
        MIXED | {"q_lora_rank": 7, "kv_lora_rank": 3, "qk_nope_head_dim": 1, "qk_rope_head_dim": 6, "v_head_dim": 5}
        | {"num_attention_heads": 3, "num_key_value_heads": 3},
        ATTENTION,
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=CASES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return quantized_checkpoint(tmp_path_factory.mktemp("odd"), *CASES[request.param])


@pytest.mark.parametrize("accuracy_level", [1, 4])
def test_onnxruntime(checkpoint: Checkpoint, accuracy_level: int) -> None:
    """A prompt, and tokens behind it, say what torch says."""
    module = target("onnxruntime")
    options = module.Options(accuracy_level=accuracy_level)
    result = module.build(checkpoint, options, checkpoint.path, lambda *_: None)
    ids = torch.randint(0, 96, (2, 24), generator=torch.Generator().manual_seed(0))
    model = CausalLM.load(checkpoint)
    expected = model.logits(model.hidden(ids))
    graph = GraphSession(checkpoint.path / result.files["main"], batch=2)
    logits = [graph.step(ids[:, start:stop], [start] * 2)[0] for start, stop in ((0, 16), (16, 17), (17, 24))]
    apart = divergences(expected, torch.cat([torch.as_tensor(each) for each in logits], 1))
    # Rounded activations may send a token to another expert: the typical position has to be close.
    assert apart.max() < limit_of(checkpoint) if accuracy_level == 1 else apart.median() < 0.03
