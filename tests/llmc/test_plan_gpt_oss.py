"""`llmc plan` on gpt-oss as it is published: experts in MXFP4, in stacks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.headers_only import write_header

from llmc.job import plan

CONFIGS = Path(__file__).parents[1] / "data/configs"


def published(folder: Path, name: str, tokenizer: Path) -> Path:
    """Names, types and shapes as on the hub."""
    folder.mkdir()
    config: dict[str, Any] = json.loads((CONFIGS / f"openai--{name}.json").read_text())
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_bytes((tokenizer / "tokenizer.json").read_bytes())
    experts, width, query = config["num_local_experts"], config["hidden_size"], 64 * config["num_attention_heads"]
    key, vocabulary = 64 * config["num_key_value_heads"], config["vocab_size"]
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    for layer in range(config["num_hidden_layers"]):
        attention, mlp = f"model.layers.{layer}.self_attn", f"model.layers.{layer}.mlp"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{layer}.{norm}.weight"] = "BF16", (width,)
        for projection, rows, columns in (
            ("q", query, width),
            ("k", key, width),
            ("v", key, width),
            ("o", width, query),
        ):
            tensors[f"{attention}.{projection}_proj.weight"] = "BF16", (rows, columns)
            tensors[f"{attention}.{projection}_proj.bias"] = "BF16", (rows,)
        tensors[f"{attention}.sinks"] = "BF16", (config["num_attention_heads"],)
        tensors |= {f"{mlp}.router.weight": ("BF16", (experts, width)), f"{mlp}.router.bias": ("BF16", (experts,))}
        for projection, rows in (("gate_up_proj", 2 * width), ("down_proj", width)):
            tensors[f"{mlp}.experts.{projection}_blocks"] = "U8", (experts, rows, width // 32, 16)
            tensors[f"{mlp}.experts.{projection}_scales"] = "U8", (experts, rows, width // 32)
            tensors[f"{mlp}.experts.{projection}_bias"] = "BF16", (experts, rows)
    for name in ("model.embed_tokens", "lm_head"):
        tensors[f"{name}.weight"] = "BF16", (vocabulary, width)
    tensors["model.norm.weight"] = "BF16", (width,)
    return write_header(folder, tensors)


# Bytes are `total_size` of the published index, parameters those of the model card (116.83 and 20.91 billion).
@pytest.mark.parametrize(
    ("name", "layers", "experts", "size", "parameters"),
    [
        ("gpt-oss-20b", 24, 32, 13_761_264_768, 20_914_757_184),
        ("gpt-oss-120b", 36, 128, 65_248_815_744, 116_829_156_672),
    ],
)
def test_sizes(
    name: str, layers: int, experts: int, size: int, parameters: int, tmp_path: Path, embedded: Path
) -> None:
    found = plan(published(tmp_path / "model", name, embedded))
    assert (found.family, found.layers, found.experts) == ("gpt_oss", layers, [experts] * 2)
    assert (found.total.before.bytes, found.total.before.parameters) == (size, parameters)
    # Codes, and scales of groups of 64, since 2,880 is no multiple of 128; biases stay bfloat16.
    weights = layers * experts * 3 * 2880 * 2880
    assert found.schemes == {"experts": {"int4-g64": weights}}
    assert any("2,880 inputs are no multiple of 128" in note for note in found.notes)
    biases = layers * experts * 3 * 2880 * 2
    shape = 16  # of each packed matrix, int64 [2]
    expected = weights * (4 + 16 / 64) / 8 + biases + shape * layers * experts * 3
    assert found.roles["experts"].after.bytes == pytest.approx(expected, rel=1e-3)
    # Attention remembers all tokens in every layer: keys and values of 8 heads of 64 channels.
    assert found.cache_bytes == layers * 2 * 8 * 64 * 2
