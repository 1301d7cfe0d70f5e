"""The smallest checkpoints there are of each family and format, as files in memory."""

from __future__ import annotations

from pathlib import Path

from harness import Case
from support.quantized_checkpoint import quantized_checkpoint
from support.random_checkpoint import DEEPSEEK_V3, LLAMA, QWEN2

from llmc.quant.layerwise import QuantizeOptions

_LATENT = DEEPSEEK_V3 | {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "moe_intermediate_size": 32,
    "v_head_dim": 16,
    "q_lora_rank": 32,
    "num_hidden_layers": 2,
    "n_routed_experts": 4,
    "n_group": 2,
    "topk_group": 1,
    "num_experts_per_tok": 2,
}
_DENSE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def small_checkpoints(folder: Path) -> list[Case]:
    made = {
        "plain": (_LATENT, {}, QuantizeOptions()),
        "packed": (
            LLAMA | _DENSE,
            {"dense_mlp": "int4-g32-asym", "attention": "fp8-channel-static"},
            QuantizeOptions(fp8_cache=True),
        ),
        "mixed": (
            _LATENT,
            {"experts": "int4-g32", "dense_mlp": "fp8-block", "attention": "int8-channel"},
            QuantizeOptions(),
        ),
        "gptq": (QWEN2 | _DENSE, {"dense_mlp": "int4-g32-actorder"}, QuantizeOptions(layout="gptq")),
        "native": (_LATENT, {"attention": "fp8-block"}, QuantizeOptions(layout="native-fp8")),
    }
    cases = []
    for name, (config, schemes, options) in made.items():
        quantized_checkpoint(folder / name, config, schemes, options)
        artifact = folder / name / "artifact"
        shards = sorted(artifact.glob("model-*.safetensors"))
        cases.append({"config.json": (artifact / "config.json").read_bytes(), "model.safetensors": _joined(shards)})
    return cases


def _joined(shards: list[Path]) -> bytes:
    """All tensors in one file, so that no index is needed."""
    from safetensors.torch import load_file, save

    return save({name: tensor for shard in shards for name, tensor in load_file(shard).items()})
