"""The smallest checkpoints there are of each family and format, as files in memory."""

from __future__ import annotations

from pathlib import Path

from harness import Case
from support.float4_checkpoint import compressed_tensors, packed_weights
from support.quantized_checkpoint import quantized_checkpoint
from support.random_checkpoint import DEEPSEEK_V3, LLAMA, QWEN2, write_checkpoint

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
    return cases + _float4(folder)


def _float4(folder: Path) -> list[Case]:
    """What is read and not made: NVFP4 and MXFP4 as compressed-tensors has them, NVFP4 as ModelOpt has it."""
    config, cases = LLAMA | _DENSE, []
    for scales in ("nvfp4", "mxfp4", "modelopt"):
        described = compressed_tensors(scales)
        weights = packed_weights(config, "mxfp4" if scales == "mxfp4" else "nvfp4")
        if scales == "modelopt":
            described = {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]}
            spelled = {"weight_packed": "weight", "weight_global_scale": "weight_scale_2"}
            for name in [name for name in weights if name.rpartition(".")[2] in spelled]:
                module, _, part = name.rpartition(".")
                weights[f"{module}.{spelled[part]}"] = weights.pop(name)
        path = write_checkpoint(folder / scales, config | {"quantization_config": described}, weights)
        cases.append({name: (path / name).read_bytes() for name in ("config.json", "model.safetensors")})
    return cases


def _joined(shards: list[Path]) -> bytes:
    """All tensors in one file, so that no index is needed."""
    from safetensors.torch import load_file, save

    return save({name: tensor for shard in shards for name, tensor in load_file(shard).items()})
