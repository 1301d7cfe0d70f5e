"""The graphs of the ranks of a divided model, added up where they meet, against the torch blocks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
from support.gpt_oss import gpt_oss_checkpoint
from support.graph_comparison import WIDTHS, compare_narrow_steps, compare_with_torch, write_graphs
from support.plugin_functions import add_plugin_functions
from support.quantized_checkpoint import DEEPSEEK, quantized_checkpoint, quantized_copy
from support.random_checkpoint import LLAMA, QWEN2, random_checkpoint
from support.ranks_together import together

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.engines.lowering import lower
from llmc.convert.engines.plugins import Plugins
from llmc.convert.engines.tensor_parallel import check, divided, rank_of
from llmc.convert.families import family_of
from llmc.convert.graph.across_ranks import COLLECTIVE
from llmc.convert.graph.build import EMBEDDING, graphs
from llmc.convert.layer_modules import weight_shapes
from llmc.errors import InputError
from llmc.quant.layerwise import QuantizeOptions

# Inner channels of which a rank of four has one and a half groups or blocks, that become three smaller ones; of 160 and
# 288, some ranks have 32 more than others.
UNEVEN = {"intermediate_size": 384, "moe_intermediate_size": 384}
WIDE = DEEPSEEK | UNEVEN | {"num_attention_heads": 4, "num_key_value_heads": 4}
DENSE = LLAMA | {"hidden_size": 128, "intermediate_size": 384}
TIED = {"tie_word_embeddings": True}
OLMO2 = DENSE | {"architectures": ["Olmo2ForCausalLM"], "model_type": "olmo2", "num_key_value_heads": 8}
MOE = {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "head_dim": 32, "num_experts": 8}
CASES: dict[str, tuple[Any, ...]] = {
    "deepseek, int4 and fp8": (
        WIDE,
        {"experts": "int4-g64", "shared_experts": "int4-g64", "attention": "fp8-block", "kv_b_proj": "fp8-block"},
    ),
    "deepseek, fp8 and an FP8 cache": (
        WIDE | {"intermediate_size": 288, "moe_intermediate_size": 160},
        {
            "experts": "fp8-block",
            "shared_experts": "fp8-block",
            "dense_mlp": "fp8-block",
            "attention": "fp8-channel",
            "mtp": "int4-g32",
        },
        QuantizeOptions(fp8_cache=True),
    ),
    "deepseek, dynamic groups": (
        WIDE,
        {"experts": "int4-g32", "shared_experts": "int4-g32-asym-actorder", "attention": "int8-g32"},
        QuantizeOptions(layout="gptq"),
    ),
    "llama": (DENSE | {"intermediate_size": 160}, {"dense_mlp": "int4-g32", "attention": "int4-g32"}),
    "llama, biases and fp8": (
        DENSE | {"attention_bias": True},
        {"dense_mlp": "fp8-block", "attention": "fp8-channel"},
    ),
    "qwen2, tied": (
        QWEN2 | {"hidden_size": 128, "intermediate_size": 384, "tie_word_embeddings": True, "head_dim": 32},
        {"dense_mlp": "int4-g64"},
    ),
    "one matrix in int4": (DENSE | TIED, {"dense_mlp": "int4-g64", "lm_head": "int4-g32"}),
    "qwen3-moe": (
        LLAMA | MOE | {"hidden_size": 128, "moe_intermediate_size": 384, "num_experts_per_tok": 2},
        {"experts": "int4-g64", "attention": "fp8-block"},
    ),
}


def lowered(checkpoint: Checkpoint, ranks: int) -> dict[str, ir.Model]:
    """With functions of standard operators in the place of plugins and of what joins the ranks."""
    found: dict[str, list[ir.Model]] = {}
    for rank in range(ranks):
        part, plugins = rank_of(checkpoint, rank, ranks), Plugins()
        for role, model in graphs(part, ir.DataType.FLOAT, 64).items():
            lower(model, part.spec, ir.DataType.FLOAT, {"int4", "int8", "float8_e4m3fn"}, WIDTHS, 2, plugins)
            add_plugin_functions(model, part.spec, plugins)
            found.setdefault(role, []).append(model)
    return {role: together(models) for role, models in found.items()}


@pytest.fixture(scope="module", params=[*CASES, "gpt-oss"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("whole")
    if request.param != "gpt-oss":
        return quantized_checkpoint(folder, *CASES[request.param])
    sizes = {"hidden_size": 128, "intermediate_size": 128, "sliding_window": 8}
    source = Checkpoint.open(gpt_oss_checkpoint(folder / "source", torch.bfloat16, **sizes))
    return quantized_copy(source, {"experts": "int4-g32"}, folder)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_together_equal_torch(case: Checkpoint, ranks: int) -> None:
    pytest.importorskip("triton", reason="Triton, which comes with torch for NVIDIA GPUs, is not installed")
    result = write_graphs(case, lowered(case, ranks))
    compare_with_torch(case, result)
    compare_narrow_steps(case, result)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_have_every_number_once(case: Checkpoint, ranks: int) -> None:
    """Cut tensors laid side by side are the whole; heads of keys, of which there may be too few, are repeated."""
    parts = [rank_of(case, rank, ranks) for rank in range(ranks)]
    cut = 0
    for name in weight_shapes(parts[0].spec):
        whole, shape = case.tensor(name) if name in case else case.tensor(EMBEDDING), parts[0].shape(name)
        here = [part.tensor(name) for part in parts]
        assert [tuple(each.shape) for each in here] == [part.shape(name) for part in parts]
        if shape == whole.shape:
            is_bias = name.endswith(("o_proj.bias", "down_proj.bias"))  # added up, and there once
            assert all(torch.equal(each, whole * 0 if is_bias and i else whole) for i, each in enumerate(here))
            continue
        (axis,) = (i for i in range(whole.dim()) if shape[i] != whole.shape[i])
        repeated = ranks * shape[axis] // whole.shape[axis] if ".self_attn." in name else 1
        once = here[::repeated]
        assert torch.equal(torch.cat(once, axis), whole)
        assert parts[0].kind(name) == (weight.kind if (weight := parts[0].quantized_tensor(name)) else None)
        cut += 1
    assert cut > 3 * case.spec.num_all_layers


def test_two_sums_a_layer(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(random_checkpoint(tmp_path, WIDE))
    for role, model in graphs(rank_of(checkpoint, 1, 2)).items():
        layers = checkpoint.spec.num_layers if role == "main" else checkpoint.spec.num_mtp_layers
        kinds = [node.attributes["collective_operation"].as_string() for node in model.graph if is_collective(node)]
        assert kinds == ["all_reduce"] * 2 * layers + ["all_gather"]
    for model in graphs(rank_of(checkpoint, 0, 1)).values():
        assert not any(map(is_collective, model.graph))


def is_collective(node: ir.Node) -> bool:
    return node.op_type == COLLECTIVE


def test_a_vocabulary_that_cannot_be_divided_stays_whole(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(random_checkpoint(tmp_path, DENSE | TIED | {"vocab_size": 97}))
    part = rank_of(checkpoint, 1, 2)
    assert part.spec.tie_word_embeddings and "lm_head.weight" not in part
    (model,) = graphs(part).values()
    kinds = [node.attributes["collective_operation"].as_string() for node in model.graph if is_collective(node)]
    assert kinds == ["all_reduce"] * 4


@pytest.mark.parametrize(
    ("config", "ranks", "message"),
    [
        (DENSE, 3, "8 attention heads cannot be divided among 3 GPUs"),
        (DENSE | {"num_attention_heads": 12, "num_key_value_heads": 4, "head_dim": 16}, 3, "4 key heads cannot be"),
        (DENSE | {"intermediate_size": 386}, 4, "386 inner channels of MLPs cannot be divided among 4 GPUs"),
        (WIDE | {"moe_intermediate_size": 130}, 4, "130 inner channels of experts cannot be divided among 4 GPUs"),
        (OLMO2, 2, "olmo2 norms the queries of all heads as one"),
    ],
)
def test_what_cannot_be_divided_is_refused(config: dict[str, Any], ranks: int, message: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(random_checkpoint(tmp_path, config))
    with pytest.raises(InputError, match=f"^tensor_parallel: {message}"):
        rank_of(checkpoint, 0, ranks)


@pytest.mark.slow
def test_groups_that_would_become_too_small_are_refused(tmp_path: Path) -> None:
    checkpoint = quantized_checkpoint(tmp_path, DENSE | {"intermediate_size": 272}, {"dense_mlp": "fp8-block"})
    with pytest.raises(InputError, match=r"down_proj.weight: is quantized, .* 136 of its input channels, .* of 32"):
        rank_of(checkpoint, 0, 2)


@pytest.mark.parametrize(
    ("name", "ranks", "sizes"),
    [
        ("deepseek-ai--DeepSeek-R1", 8, {256}),
        ("Qwen--Qwen3-30B-A3B", 4, {192}),
        ("openai--gpt-oss-120b", 4, {736, 704}),  # 90 times 32
        ("deepseek-ai--DeepSeek-V2-Lite-Chat", 8, {192, 160}),  # 44 times 32
    ],
)
def test_published_models_are_divided(name: str, ranks: int, sizes: set[int]) -> None:
    """Everything quantized, in groups of 32 or more."""
    config = json.loads((Path(__file__).parents[1] / f"data/configs/{name}.json").read_text())
    spec = family_of(config).spec(config)
    schemes = {name.removesuffix(".weight"): "int4-g32" for name, shape in weight_shapes(spec).items() if shape[1:]}
    check("tensorrt-rtx", spec, ranks, schemes)
    parts = [divided(spec, ranks, rank).mlps[-1] for rank in range(ranks)]
    assert sum(each.intermediate_size for each in parts) == spec.mlps[-1].intermediate_size
    assert {each.intermediate_size for each in parts} == sizes
