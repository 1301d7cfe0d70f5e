"""Writes a Llama or DeepSeek-V3 checkpoint as GGUF in float16.

llama.cpp's own converter is a script of its repository, not of its package; this one knows only what the benchmark
needs. That it is right shows in the divergence of the float16 file from the original.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Tensors = Iterator[tuple[str, Array]]  # names without `.weight`
MLP = {"gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"}
_MTP = {"eh_proj": "eh_proj", "enorm": "enorm", "hnorm": "hnorm", "shared_head.norm": "shared_head_norm"}


class Checkpoint:
    """bfloat16 and float32 tensors of safetensors files, as float32."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config: dict[str, Any] = json.loads((path / "config.json").read_text())
        self._places: dict[str, tuple[Path, int, dict[str, Any]]] = {}
        for shard in sorted(path.glob("*.safetensors")):
            with shard.open("rb") as file:
                size = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(size))
            header.pop("__metadata__", None)
            self._places |= {name: (shard, 8 + size, entry) for name, entry in header.items()}

    def __getitem__(self, name: str) -> Array:
        shard, base, entry = self._places[name]
        start, _ = entry["data_offsets"]
        stored = {"BF16": np.uint16, "F32": np.float32}[entry["dtype"]]
        values = np.fromfile(shard, stored, math.prod(entry["shape"]), offset=base + start)
        wide = values if stored is np.float32 else (values.astype(np.uint32) << 16).view(np.float32)
        return wide.reshape(entry["shape"])

    def __contains__(self, name: str) -> bool:
        return name in self._places


def convert(source: Path, output: Path, mtp: bool) -> None:
    """mtp: with the MTP layer, which llama.cpp would keep in memory even when it does not draft."""
    checkpoint = Checkpoint(source)
    latent = checkpoint.config["model_type"] == "deepseek_v3"
    writer = gguf.GGUFWriter(str(output), "deepseek2" if latent else "llama")
    drafting = checkpoint.config["num_nextn_predict_layers"] if mtp else 0
    layers = checkpoint.config["num_hidden_layers"] + drafting
    _common(writer, checkpoint.config, layers)
    if drafting:
        writer.add_nextn_predict_layers(drafting)
    (_latent if latent else _grouped)(writer, checkpoint.config)
    _tokenizer(writer, source)
    for name, tensor in _tensors(checkpoint, latent, layers):
        narrow = tensor.ndim > 1 and not name.endswith("ffn_gate_inp")  # llama.cpp keeps vectors and routers wide
        suffix = ".bias" if name.endswith("exp_probs_b") else ".weight"
        writer.add_tensor(name + suffix, np.ascontiguousarray(tensor.astype(np.float16 if narrow else np.float32)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _common(writer: gguf.GGUFWriter, config: dict[str, Any], layers: int) -> None:
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(layers)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config.get("rope_theta") or config["rope_parameters"]["rope_theta"])


def _grouped(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])


def _latent(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    """DeepSeek-V3: latents are cached and kv_b_proj absorbed, so that attention has one head of keys and values."""
    rank, rotary, width = config["kv_lora_rank"], config["qk_rope_head_dim"], config["v_head_dim"]
    writer.add_head_count_kv(1)
    writer.add_key_length(rank + rotary)
    writer.add_value_length(rank)
    writer.add_key_length_mla(config["qk_nope_head_dim"] + rotary)
    writer.add_value_length_mla(width)
    writer.add_kv_lora_rank(rank)
    writer.add_q_lora_rank(config["q_lora_rank"] or 0)  # left out, llama.cpp refuses the file
    writer.add_rope_dimension_count(rotary)
    writer.add_leading_dense_block_count(config["first_k_dense_replace"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_expert_count(config["n_routed_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_expert_shared_count(config["n_shared_experts"])
    writer.add_expert_group_count(config["n_group"])
    writer.add_expert_group_used_count(config["topk_group"])
    writer.add_expert_weights_scale(config["routed_scaling_factor"])
    writer.add_expert_weights_norm(config["norm_topk_prob"])
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)


def _tokenizer(writer: gguf.GGUFWriter, source: Path) -> None:
    """Byte-level BPE; never asked, as all tools get token ids, but llama.cpp loads nothing without one."""
    described = json.loads((source / "tokenizer.json").read_text())
    special = {token["id"] for token in described["added_tokens"] if token["special"]}
    vocabulary = described["model"]["vocab"] | {token["content"]: token["id"] for token in described["added_tokens"]}
    tokens = sorted(vocabulary, key=lambda token: vocabulary[token])
    kinds = (gguf.TokenType.NORMAL, gguf.TokenType.CONTROL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([kinds[vocabulary[token] in special] for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in described["model"]["merges"]])
    writer.add_add_bos_token(False)


def _tensors(checkpoint: Checkpoint, latent: bool, layers: int) -> Tensors:
    """llama.cpp's names. MTP layers are those behind the decoder's; they share its embedding and lm_head."""
    yield "token_embd", checkpoint["model.embed_tokens.weight"]
    yield "output_norm", checkpoint["model.norm.weight"]
    if "lm_head.weight" in checkpoint:  # else llama.cpp takes the embedding
        yield "output", checkpoint["lm_head.weight"]
    for layer in range(layers):
        prefix, block = f"model.layers.{layer}.", f"blk.{layer}."
        yield block + "attn_norm", checkpoint[prefix + "input_layernorm.weight"]
        yield block + "ffn_norm", checkpoint[prefix + "post_attention_layernorm.weight"]
        yield block + "attn_output", checkpoint[prefix + "self_attn.o_proj.weight"]
        attention = _latent_attention if latent else _grouped_attention
        for name, tensor in attention(checkpoint, prefix + "self_attn."):
            yield block + name, tensor
        mixture = prefix + "mlp.gate.weight" in checkpoint
        for name, tensor in (_mixture if mixture else _mlp)(checkpoint, prefix + "mlp."):
            yield block + name, tensor
        if layer >= checkpoint.config["num_hidden_layers"]:
            for theirs, ours in _MTP.items():
                yield f"{block}nextn.{ours}", checkpoint[f"{prefix}{theirs}.weight"]


def _grouped_attention(checkpoint: Checkpoint, prefix: str) -> Tensors:
    """llama.cpp rotates neighboring channels of a Llama's queries and keys, checkpoints have the pairs half a head
    apart."""
    for short, heads in (("q", "num_attention_heads"), ("k", "num_key_value_heads")):
        weight = checkpoint[f"{prefix}{short}_proj.weight"]
        halves = weight.reshape(checkpoint.config[heads], 2, -1, weight.shape[1])
        yield f"attn_{short}", halves.swapaxes(1, 2).reshape(weight.shape)
    yield "attn_v", checkpoint[prefix + "v_proj.weight"]


def _latent_attention(checkpoint: Checkpoint, prefix: str) -> Tensors:
    if checkpoint.config["q_lora_rank"]:
        yield "attn_q_a", checkpoint[prefix + "q_a_proj.weight"]
        yield "attn_q_a_norm", checkpoint[prefix + "q_a_layernorm.weight"]
        yield "attn_q_b", checkpoint[prefix + "q_b_proj.weight"]
    else:
        yield "attn_q", checkpoint[prefix + "q_proj.weight"]
    yield "attn_kv_a_mqa", checkpoint[prefix + "kv_a_proj_with_mqa.weight"]
    yield "attn_kv_a_norm", checkpoint[prefix + "kv_a_layernorm.weight"]
    weight = checkpoint[prefix + "kv_b_proj.weight"]
    heads = weight.reshape(checkpoint.config["num_attention_heads"], -1, weight.shape[1])
    keys, values = np.split(heads, [checkpoint.config["qk_nope_head_dim"]], axis=1)
    yield "attn_k_b", keys.swapaxes(1, 2)
    yield "attn_v_b", values


def _mlp(checkpoint: Checkpoint, prefix: str) -> Tensors:
    for theirs, ours in MLP.items():
        yield ours, checkpoint[f"{prefix}{theirs}.weight"]


def _mixture(checkpoint: Checkpoint, prefix: str) -> Tensors:
    yield "ffn_gate_inp", checkpoint[prefix + "gate.weight"]
    yield "exp_probs_b", checkpoint[prefix + "gate.e_score_correction_bias"]
    for theirs, ours in MLP.items():
        yield ours + "_shexp", checkpoint[f"{prefix}shared_experts.{theirs}.weight"]
        experts = range(checkpoint.config["n_routed_experts"])
        yield ours + "_exps", np.stack([checkpoint[f"{prefix}experts.{index}.{theirs}.weight"] for index in experts])
