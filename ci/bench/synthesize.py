#!/usr/bin/env python3
"""Write a checkpoint with random weights: any shape, any size, one tensor in memory at a time.

    python ci/bench/synthesize.py dense OUTPUT
    python ci/bench/synthesize.py moe OUTPUT --set num_hidden_layers=8

Weights are normal with the spread that keeps activations near one; input channels differ in scale as those of trained
models do (log-normal), so that act-order and scale search have something to find. The tokenizer is the embedded
checkpoint's.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from llmc.convert.families import family_of
from llmc.convert.layer_modules import weight_shapes
from llmc.convert.safetensors_file import SafetensorsWriter
from llmc.source import locate

_COMMON = {
    "vocab_size": 4096,
    "hidden_act": "silu",
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "torch_dtype": "bfloat16",
}
CONFIGS: dict[str, dict[str, Any]] = {
    # 91 M parameters, 84 linear layers.
    "dense": _COMMON
    | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 12,
    },
    # 110 M parameters, 412 linear layers: 4 of attention, 32 routed experts and a shared one in each of 4 layers.
    "moe": _COMMON
    | {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "hidden_size": 512,
        "intermediate_size": 1024,
        "moe_intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_nextn_predict_layers": 0,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "q_lora_rank": None,
        "kv_lora_rank": 128,
        "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 32,
        "v_head_dim": 64,
        "n_routed_experts": 32,
        "n_shared_experts": 1,
        "num_experts_per_tok": 4,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 0,
        "moe_layer_freq": 1,
        "norm_topk_prob": True,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "routed_scaling_factor": 1.0,
        "rope_interleave": True,
        "rope_scaling": None,
        "attention_bias": False,
    },
}
# 6.4 billion parameters, 12.9 GB: 256 small experts in each of 15 layers and in the MTP layer.
CONFIGS["large"] = CONFIGS["moe"] | {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 16,
    "num_nextn_predict_layers": 1,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "q_lora_rank": 384,
    "n_routed_experts": 256,
    "num_experts_per_tok": 8,
    "n_group": 8,
    "topk_group": 4,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 2.5,
}


def synthesize(config: dict[str, Any], output: Path, seed: int = 0, shard_bytes: int = 1 << 30) -> Path:
    """bfloat16 safetensors in shards, index, config.json and tokenizer; done when config.json is there."""
    output.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    room = shard_bytes
    for name, shape in weight_shapes(family_of(config).spec(config)).items():
        size = 2 * torch.Size(shape).numel()
        if size > room and shards[-1]:
            shards.append({})
            room = shard_bytes
        shards[-1][name] = shape
        room -= size
    weight_map, total = {}, 0
    for number, shard in enumerate(track(shards, "writing shards")):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        with SafetensorsWriter(output / file) as writer:
            for name, shape in shard.items():
                tensor = _weight(name, shape, generator)
                writer.add(name, tensor)
                weight_map[name] = file
                total += tensor.nbytes
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (output / "model.safetensors.index.json").write_text(json.dumps(index))
    embedded = locate("builtin:tiny-deepseek-v3", Path()).path
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(embedded / name, output)
    (output / "config.json").write_text(json.dumps(config, indent=2))
    return output


def _weight(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    values = torch.randn(shape, generator=generator)
    if "e_score_correction_bias" in name:
        return 0.01 * values
    if len(shape) == 1:
        return (1 + 0.2 * values).bfloat16()
    channels = torch.randn(shape[1], generator=generator).mul_(0.5).exp_()
    return (values * channels * (channels.square().sum() ** -0.5)).bfloat16()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=CONFIGS)
    parser.add_argument("output", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a field of config.json")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    config = dict(CONFIGS[args.model])
    for setting in args.set:
        key, _, value = setting.partition("=")
        config[key] = json.loads(value)
    synthesize(config, args.output, args.seed)


if __name__ == "__main__":
    main()
