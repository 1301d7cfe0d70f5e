"""Small gpt-oss checkpoints, as transformers saves them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

# In the published dialect; gates reach the limit, and windows are shorter than the texts of tests.
GPT_OSS: dict[str, Any] = {
    "architectures": ["GptOssForCausalLM"],
    "model_type": "gpt_oss",
    "attention_bias": True,
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "hidden_act": "silu",
    "num_local_experts": 8,
    "num_experts_per_tok": 3,
    "experts_per_token": 3,
    "sliding_window": 24,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "swiglu_limit": 1.0,
    "initial_context_length": 32,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 150000,
    "rope_scaling": {
        "rope_type": "yarn",
        "factor": 8.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "original_max_position_embeddings": 32,
        "truncate": False,
    },
    "tie_word_embeddings": False,
    "eos_token_id": 1,
    "pad_token_id": 2,
}


def gpt_oss_checkpoint(folder: Path, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    """Random weights, of which biases and sinks are a good part."""
    config = GPT_OSS | changes
    published = AutoConfig.for_model("gpt_oss", **{key: value for key, value in config.items() if key != "model_type"})
    model = AutoModelForCausalLM.from_config(published, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                parameter.copy_(1 + 0.2 * values)
            elif "bias" in name or parameter.dim() == 1:
                parameter.copy_(0.5 * values)
            else:
                parameter.copy_(values * config["hidden_size"] ** -0.5)
    model.to(dtype).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


MXFP4 = {
    "quant_method": "mxfp4",
    "modules_to_not_convert": [
        *("model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"),
    ],
}


def in_mxfp4(source: Path, folder: Path) -> Path:
    """The checkpoint of `source` as gpt-oss is published: experts in blocks, with codes of no meaning."""
    generator, tensors = torch.Generator().manual_seed(3), load_file(source / "model.safetensors")
    for name in [name for name in tensors if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        experts, columns, rows = tensors.pop(name).shape
        shape = (experts, rows, columns // 32)
        tensors[f"{name}_blocks"] = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8, generator=generator)
        tensors[f"{name}_scales"] = torch.randint(121, 124, shape, dtype=torch.uint8, generator=generator)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((source / "config.json").read_text()) | {"quantization_config": MXFP4}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
