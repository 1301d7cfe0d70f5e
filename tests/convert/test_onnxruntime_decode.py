"""How many nodes a decoder layer becomes for ONNX Runtime, and that the fused ones compute what torch does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.architectures import yarn
from support.graph_session import GraphSession, divergences
from support.model_lines import published_config
from support.quantized_checkpoint import DEEPSEEK, DENSE, EXACT, quantized_checkpoint
from support.random_checkpoint import LLAMA, QWEN2
from support.small_config import small_config
from support.small_model import save, witness

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.model import CausalLM
from llmc.convert.targets import target

INT4 = dict.fromkeys(("dense_mlp", "attention"), "int4-g32")


def build(
    folder: Path, config: dict[str, Any], schemes: dict[str, str], **options: Any
) -> tuple[Checkpoint, dict[str, int]]:
    """A quantized checkpoint, lowered; with it how often each op occurs in its main graph."""
    checkpoint = quantized_checkpoint(folder, config, schemes)
    return checkpoint, lower(checkpoint, **options)


def lower(checkpoint: Checkpoint, **options: Any) -> dict[str, int]:
    module = target("onnxruntime")
    result = module.build(checkpoint, module.Options(**options), checkpoint.path, lambda *_: None)
    ops: dict[str, int] = result.details["ops"]["main"]
    return ops


def divergence(checkpoint: Checkpoint) -> float:
    """The largest between torch and the graph, of rows of unequal length: prefill, several tokens, one token."""
    ids = torch.randint(0, 96, (2, 20), generator=torch.Generator().manual_seed(0))
    model = CausalLM.load(checkpoint)
    expected = model.logits(model.hidden(ids))
    graph = GraphSession(checkpoint.path / "model.onnx", batch=2)
    largest = 0.0
    for starts, length in (([0, 0], 9), ([9, 6], 5), ([14, 11], 1), ([15, 12], 1)):
        rows = [slice(start, start + length) for start in starts]
        logits, _ = graph.step(torch.stack([ids[b, row] for b, row in enumerate(rows)]), starts)
        wanted = torch.stack([expected[b, row] for b, row in enumerate(rows)])
        largest = max(largest, float(divergences(wanted, logits).max()))
    return largest


@pytest.mark.parametrize(
    "config",
    [LLAMA | DENSE, QWEN2 | DENSE | {"head_dim": 32}, LLAMA | DENSE | yarn(attention_factor=0.9)],
    ids=["llama", "biases", "yarn"],
)
def test_grouped_query_attention(config: dict[str, Any], tmp_path: Path) -> None:
    """One product of query, key and value, which the attention takes as it is and rotates itself."""
    checkpoint, ops = build(tmp_path, config, INT4, accuracy_level=1)
    layers = checkpoint.spec.num_layers
    assert (ops["GroupQueryAttention"], ops["MatMulNBits"]) == (layers, 4 * layers)
    assert ops["Split"] == layers  # gate and up
    assert not ops.keys() & {"RotaryEmbedding", "Transpose"}
    assert divergence(checkpoint) < EXACT


def test_head_size_that_the_kernel_does_not_rotate(tmp_path: Path) -> None:
    checkpoint, ops = build(tmp_path, LLAMA | DENSE | {"head_dim": 24}, INT4, accuracy_level=1)
    assert ops["RotaryEmbedding"] == 2 * checkpoint.spec.num_layers
    assert divergence(checkpoint) < EXACT


def test_different_schemes_stay_apart(tmp_path: Path) -> None:
    """Linears of one input that are quantized in different ways are different nodes."""
    schemes = {"re:.*(k_proj|gate_proj)": "int4-g32", "re:.*(q_proj|up_proj)": "int4-g64"}
    checkpoint, ops = build(tmp_path, LLAMA | DENSE, schemes, accuracy_level=1)
    assert ops["MatMulNBits"] == 4 * checkpoint.spec.num_layers
    assert "Split" not in ops
    assert divergence(checkpoint) < EXACT


@pytest.mark.parametrize("tied", [False, True])
def test_head_in_8_bits(tied: bool, tmp_path: Path) -> None:
    """By default at level 4, of tied embeddings too; neither at level 1, nor when told not to."""
    config = LLAMA | DENSE | {"tie_word_embeddings": tied}
    checkpoint, ops = build(tmp_path, config, INT4)
    found = [divergence(checkpoint)]
    floats = [lower(checkpoint, accuracy_level=1), lower(checkpoint, lm_head_bits=None)]
    found.append(divergence(checkpoint))
    assert ops["MatMulNBits"] == 1 + 4 * checkpoint.spec.num_layers
    assert "MatMul" not in ops
    assert [histogram["MatMul"] for histogram in floats] == [1, 1]
    assert max(found) < 3e-3
    assert found[0] != found[1]


@pytest.mark.parametrize("name", ["ibm-granite--granite-3.1-1b-a400m-instruct", "google--gemma-2-9b-it"])
def test_head_in_8_bits_of_logits_that_are_scaled_or_capped(name: str, tmp_path: Path) -> None:
    config = small_config(published_config(name))
    checkpoint = Checkpoint.open(save(witness(config), config, tmp_path))
    bits = [lower(checkpoint, lm_head_bits=bits) for bits in (None, 8)]
    assert [ops.get("MatMulNBits", 0) for ops in bits] == [0, 1]
    assert divergence(checkpoint) < 3e-3


def test_float_linears(tmp_path: Path) -> None:
    """Floats of one input are one product, too."""
    checkpoint, ops = build(tmp_path, QWEN2 | DENSE | {"head_dim": 32}, {"dense_mlp": "int4-g32"}, accuracy_level=1)
    layers = checkpoint.spec.num_layers
    assert ops["MatMul"] == 2 * layers + 1
    assert not ops.keys() & {"RotaryEmbedding", "Transpose"}
    assert divergence(checkpoint) < EXACT


@pytest.mark.parametrize("schemes", [{"experts": "int4-g32"}, {"attention": "int4-g32"}], ids=["int4", "floats"])
def test_experts(schemes: dict[str, str], tmp_path: Path) -> None:
    """The sum of the chosen experts' shares, 2.5, lies in the weights; only the router wants tokens in one row each."""
    checkpoint, ops = build(tmp_path, DEEPSEEK, schemes, accuracy_level=1)
    layers = checkpoint.spec.num_layers
    assert ops["MoEGroupRouter"] == ops.get("QMoE", 0) + ops.get("MoE", 0) == layers - 1
    assert ops["Mul"] == 2 * layers + 3  # SwiGLU; angles, and attention_factor for both
    # Heads; before and after kv_b_proj's halves, which are multiplied heads first; tokens for the router.
    assert ops["Reshape"] == 2 * layers + 3 * layers + (layers - 1)
    assert divergence(checkpoint) < EXACT


def test_residuals(tmp_path: Path) -> None:
    """Every norm but the first has a sum in front of it, which the same node makes."""
    checkpoint, ops = build(tmp_path, LLAMA | DENSE, INT4)
    assert (ops["SkipSimplifiedLayerNormalization"], ops["RMSNormalization"]) == (2 * checkpoint.spec.num_layers, 1)
    assert ops["Add"] == 1  # of lengths
