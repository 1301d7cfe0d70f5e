"""Decodes the weights of a GGUF file that checkpoint_to_gguf.py and llama.cpp made, so that one reader and one model
can measure it: a checkpoint in float32, beside the original's config and tokenizer.

Arguments: original checkpoint, GGUF file, output folder.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from checkpoint_to_gguf import MLP, Array
from safetensors.numpy import save_file

_ENDS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_output": "self_attn.o_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "ffn_gate_inp": "mlp.gate",
}
_MLPS = {name: theirs for theirs, name in MLP.items()}


def decode(source: Path, file: Path, output: Path) -> None:
    """Writes what `file` holds of the checkpoint `source`, without MTP layers."""
    config: dict[str, Any] = json.loads((source / "config.json").read_text())
    tensors = {
        tensor.name.rpartition(".")[0]: gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        for tensor in gguf.GGUFReader(file).tensors
    }
    weights = {name: np.ascontiguousarray(each) for name, each in _checkpoint(tensors, config)}
    output.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.suffix == ".json" and "index" not in path.name:
            shutil.copyfile(path, output / path.name)
    if "num_nextn_predict_layers" in config:
        config["num_nextn_predict_layers"] = 0
    (output / "config.json").write_text(json.dumps(config))
    save_file(weights, output / "model.safetensors")


def _checkpoint(tensors: dict[str, Array], config: dict[str, Any]) -> Iterator[tuple[str, Array]]:
    """The checkpoint's names and order of rows."""
    for name, tensor in tensors.items():
        if name in _ENDS:
            yield f"{_ENDS[name]}.weight", tensor
            continue
        _, layer, kind = name.split(".")
        prefix = f"model.layers.{layer}."
        if kind in _LAYER:
            yield f"{prefix}{_LAYER[kind]}.weight", tensor
        elif kind in ("attn_q", "attn_k"):
            heads = config["num_key_value_heads" if kind == "attn_k" else "num_attention_heads"]
            latent = "kv_lora_rank" in config
            yield f"{prefix}self_attn.{kind[-1]}_proj.weight", tensor if latent else _in_halves(tensor, heads)
        elif kind == "attn_k_b":
            both = np.concatenate([tensor.swapaxes(1, 2), tensors[f"blk.{layer}.attn_v_b"]], axis=1)
            yield f"{prefix}self_attn.kv_b_proj.weight", both.reshape(-1, both.shape[-1])
        elif kind == "exp_probs_b":
            yield f"{prefix}mlp.gate.e_score_correction_bias", tensor
        elif kind.removesuffix("_shexp") in _MLPS:
            part = "shared_experts." if kind.endswith("_shexp") else ""
            yield f"{prefix}mlp.{part}{_MLPS[kind.removesuffix('_shexp')]}.weight", tensor
        elif kind.endswith("_exps"):
            for expert, weight in enumerate(tensor):
                yield f"{prefix}mlp.experts.{expert}.{_MLPS[kind.removesuffix('_exps')]}.weight", weight


def _in_halves(rows: Array, heads: int) -> Array:
    """Undoes checkpoint_to_gguf's order of the rows of q_proj and k_proj."""
    return rows.reshape(heads, -1, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


if __name__ == "__main__":
    decode(*map(Path, sys.argv[1:4]))
