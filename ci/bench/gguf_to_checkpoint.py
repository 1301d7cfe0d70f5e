"""Writes a Llama that lies in a GGUF file as the Hugging Face checkpoint it was made from, in float32.

What llama.cpp's converter did is undone: rows of q_proj and k_proj lie in pairs there, as its rotary embedding turns
channels 2i and 2i + 1, where Llama's checkpoints have i and i + d/2. Quantized weights are decoded, so that no more is
lost than the file has lost already.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

Array = NDArray[np.float32]
_ENDS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_INSIDE = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
# How text is split before it is merged, by `tokenizer.ggml.pre`.
_SPLITS = {
    "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
}


def convert(source: Path, output: Path) -> None:
    """Writes config.json, model.safetensors, the tokenizer's files and generation_config.json into `output`.

    Raises:
        SystemExit: for a file that is no Llama with a byte-level tokenizer
    """
    file = gguf.GGUFReader(source)
    metadata = {name: field.contents() for name, field in file.fields.items()}
    for key, wanted in {"general.architecture": ("llama",), "tokenizer.ggml.model": ("gpt2",)}.items():
        if metadata.get(key) not in wanted:
            raise SystemExit(f"{source}: `{key}` is {metadata.get(key)!r}; only {', '.join(wanted)} is read here")
    output.mkdir(parents=True, exist_ok=True)
    tensors = {tensor.name: tensor for tensor in file.tensors}
    config = _config(metadata, tied="output.weight" not in tensors)
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    weights = {}
    for name, tensor in tensors.items():
        values: Array = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        kind = name.split(".")[2] if name.startswith("blk.") else ""
        weights[_name(name)] = in_halves(values, heads[kind]) if kind in heads else values
    _write(output / "config.json", config)
    _tokenizer(metadata, output)
    numbers = {f"{ours.removesuffix('_token')}_token_id": metadata.get(f"tokenizer.ggml.{theirs}_token_id")
               for ours, theirs in _SPECIAL.items() if ours != "unk_token"}  # fmt: skip
    _write(output / "generation_config.json", {key: value for key, value in numbers.items() if value is not None})
    save_file({name: np.ascontiguousarray(each) for name, each in weights.items()}, output / "model.safetensors")


def in_halves(rows: Array, heads: int) -> Array:
    """Rows of q_proj or k_proj: of each head first the even ones, then the odd ones."""
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _name(theirs: str) -> str:
    if theirs in _ENDS:
        return _ENDS[theirs]
    _, layer, kind, part = theirs.split(".")
    return f"model.layers.{layer}.{_INSIDE[kind]}.{part}"


def _config(metadata: dict[str, Any], tied: bool) -> dict[str, Any]:
    llama = {key.removeprefix("llama."): value for key, value in metadata.items() if key.startswith("llama.")}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "vocab_size": len(metadata["tokenizer.ggml.tokens"]),
        "hidden_size": llama["embedding_length"],
        "intermediate_size": llama["feed_forward_length"],
        "num_hidden_layers": llama["block_count"],
        "num_attention_heads": llama["attention.head_count"],
        "num_key_value_heads": llama["attention.head_count_kv"],
        "head_dim": llama.get("rope.dimension_count", llama["embedding_length"] // llama["attention.head_count"]),
        "hidden_act": "silu",
        "max_position_embeddings": llama["context_length"],
        "rms_norm_eps": float(np.format_float_positional(np.float32(llama["attention.layer_norm_rms_epsilon"]))),
        "rope_theta": llama["rope.freq_base"],
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": metadata.get("tokenizer.ggml.eos_token_id"),
    }


def _tokenizer(metadata: dict[str, Any], output: Path) -> None:
    """tokenizer.json, tokenizer_config.json and chat_template.jinja."""
    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    split = metadata.get("tokenizer.ggml.pre", "gpt-2")
    if split not in _SPLITS:
        raise SystemExit(f"`tokenizer.ggml.pre` is {split!r}; only {', '.join(_SPLITS)} are read here")
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = _SPLITS[split]()
    tokenizer.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == gguf.TokenType.CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    tokenizer.save(str(output / "tokenizer.json"))
    numbers = {ours: metadata.get(f"tokenizer.ggml.{theirs}_token_id") for ours, theirs in _SPECIAL.items()}
    named = {name: tokens[number] for name, number in numbers.items() if number is not None}
    add_bos = {"add_bos_token": bool(metadata.get("tokenizer.ggml.add_bos_token", False))}
    _write(output / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **add_bos, **named})
    if template := metadata.get("tokenizer.chat_template"):
        (output / "chat_template.jinja").write_text(template, encoding="utf-8")


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
