"""A small random NVLM-D with a tokenizer, and what its published code computes, written anew in torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from support.small_model import _random

TILE = 56  # pixels; 4 x 4 patches, 2 x 2 tokens
TOKEN = "<|vision_pad|>"
ADDED = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", TOKEN]
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CONFIG: dict[str, Any] = {
    "architectures": ["NVLM_D"],
    "model_type": "NVLM_D",
    "auto_map": {"AutoModel": "modeling_nvlm_d.NVLM_D_Model"},
    "downsample_ratio": 0.5,
    "dynamic_image_size": True,
    "force_image_size": TILE,
    "max_dynamic_patch": 12,
    "ps_version": "v2",
    "select_layer": -1,
    "llm_config": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": 260,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "eos_token_id": 256,
    },
    "vision_config": {
        "architectures": ["InternVisionModel"],
        "model_type": "intern_vit_6b",
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "patch_size": 14,
        "image_size": TILE,
        "norm_type": "rms_norm",
        "qk_normalization": True,
        "qkv_bias": False,
    },
}


def rms(x: torch.Tensor, weight: torch.Tensor, eps: float, channels: int) -> torch.Tensor:
    """The mean square is that of the first channels."""
    return x * (x[..., :channels].pow(2).mean(-1, keepdim=True) + eps).rsqrt() * weight


class Nvlm:
    """The published model. `tensors` by the names of its checkpoint, in float32."""

    def __init__(self, config: dict[str, Any], tensors: dict[str, torch.Tensor], text: nn.Module) -> None:
        self.config, self.tensors, self.text = config, tensors, text

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """[tiles, 3, side, side] -> [tiles, tokens, H]"""
        vision, get = self.config["vision_config"], self.tensors
        width, heads = vision["hidden_size"], vision["num_attention_heads"]
        channels = width // heads
        where = "vision_model.embeddings."
        patches = F.conv2d(
            pixels,
            get[where + "patch_embedding.weight"],
            get[where + "patch_embedding.bias"],
            stride=vision["patch_size"],
        )
        first = get[where + "class_embedding"].expand(len(pixels), 1, -1)
        x = torch.cat([first, patches.flatten(2).transpose(1, 2)], 1) + get[where + "position_embedding"]

        for layer in range(vision["num_hidden_layers"]):
            inside = {
                name.split(f"layers.{layer}.")[1]: tensor
                for name, tensor in get.items()
                if f"vision_model.encoder.layers.{layer}." in name
            }
            normed = self.norm(x, inside, "norm1")
            query, key, value = (normed @ inside["attn.qkv.weight"].T).chunk(3, -1)
            if vision["qk_normalization"]:
                query = rms(query, inside["attn.q_norm.weight"], 1e-6, width)
                key = rms(key, inside["attn.k_norm.weight"], 1e-6, width)
            split = [each.unflatten(-1, (-1, channels)).transpose(1, 2) for each in (query, key, value)]
            scores = (split[0] @ split[1].mT * channels**-0.5).softmax(-1)
            mixed = (scores @ split[2]).transpose(1, 2).flatten(2)
            x = x + inside["ls1"] * F.linear(mixed, inside["attn.proj.weight"], inside["attn.proj.bias"])
            inner = F.gelu(F.linear(self.norm(x, inside, "norm2"), inside["mlp.fc1.weight"], inside["mlp.fc1.bias"]))
            x = x + inside["ls2"] * F.linear(inner, inside["mlp.fc2.weight"], inside["mlp.fc2.bias"])

        x = x[:, 1:]
        side = int(x.shape[1] ** 0.5)
        x = shuffled(x.unflatten(1, (side, side)), self.config["downsample_ratio"], self.config["ps_version"])
        x = F.layer_norm(x, x.shape[-1:], get["mlp1.0.weight"], get["mlp1.0.bias"], 1e-5)
        return F.linear(F.gelu(F.linear(x, get["mlp1.1.weight"])), get["mlp1.3.weight"])

    def norm(self, x: torch.Tensor, inside: dict[str, torch.Tensor], name: str) -> torch.Tensor:
        weight = inside[f"{name}.weight"]
        if self.config["vision_config"]["norm_type"] == "layer_norm":
            return F.layer_norm(x, weight.shape, weight, inside[f"{name}.bias"], 1e-6)
        return rms(x, weight, 1e-6, x.shape[-1])

    def logits(self, ids: list[int], pixels: torch.Tensor | None = None) -> torch.Tensor:
        """[S, V]; the features stand where the tokens for them are, in order."""
        tokens = torch.tensor(ids)
        text: Any = self.text
        embedded: torch.Tensor = text.get_input_embeddings()(tokens)
        if pixels is not None:
            embedded = embedded.clone()
            embedded[tokens == 256 + ADDED.index(TOKEN)] = self.features(pixels).flatten(0, 1)
        return self.text(inputs_embeds=embedded[None], use_cache=False).logits[0]

    def answer(self, ids: list[int], pixels: torch.Tensor | None, count: int) -> list[int]:
        """The most likely tokens, one after the other, until one ends the text."""
        found: list[int] = []
        while len(found) < count:
            token = int(self.logits([*ids, *found], pixels)[-1].argmax())
            if token == 256:
                break
            found.append(token)
        return found


def shuffled(x: torch.Tensor, ratio: float, version: str) -> torch.Tensor:
    """[N, rows, columns, C] -> [N, tokens, C / ratio²], step by step as published."""
    n, rows, columns, channels = x.shape
    x = x.reshape(n, rows, int(columns * ratio), int(channels / ratio)).permute(0, 2, 1, 3)
    x = x.reshape(n, int(columns * ratio), int(rows * ratio), int(channels / ratio**2))
    x = x if version == "v1" else x.permute(0, 2, 1, 3)
    return x.flatten(1, 2)


def shapes(config: dict[str, Any], heads: int) -> dict[str, tuple[int, ...]]:
    """Of the tower and projector. heads: as stored, those of zeros included."""
    vision, text = config["vision_config"], config["llm_config"]
    width, inner = vision["hidden_size"], vision["intermediate_size"]
    all_heads, patch = heads * width // vision["num_attention_heads"], vision["patch_size"]
    biased = vision["norm_type"] == "layer_norm"
    found: dict[str, tuple[int, ...]] = {
        "vision_model.embeddings.class_embedding": (1, 1, width),
        "vision_model.embeddings.position_embedding": (1, (vision["image_size"] // patch) ** 2 + 1, width),
        "vision_model.embeddings.patch_embedding.weight": (width, 3, patch, patch),
        "vision_model.embeddings.patch_embedding.bias": (width,),
        "mlp1.0.weight": (4 * width,),
        "mlp1.0.bias": (4 * width,),
        "mlp1.1.weight": (text["intermediate_size"], 4 * width),
        "mlp1.3.weight": (text["hidden_size"], text["intermediate_size"]),
    }
    for layer in range(vision["num_hidden_layers"]):
        inside = {
            "attn.qkv.weight": (3 * all_heads, width),
            "attn.proj.weight": (width, all_heads),
            "attn.proj.bias": (width,),
            "attn.q_norm.weight": (all_heads,),
            "attn.k_norm.weight": (all_heads,),
            "norm1.weight": (width,),
            "norm2.weight": (width,),
            "ls1": (width,),
            "ls2": (width,),
            "mlp.fc1.weight": (inner, width),
            "mlp.fc1.bias": (inner,),
            "mlp.fc2.weight": (width, inner),
            "mlp.fc2.bias": (width,),
        } | ({"norm1.bias": (width,), "norm2.bias": (width,)} if biased else {})
        found |= {f"vision_model.encoder.layers.{layer}.{name}": shape for name, shape in inside.items()}
    return found


def recipe_of(source: Path, text_file: Path) -> dict[str, Any]:
    """A build of such a model with all that it takes and no more."""
    return {
        "model": str(source),
        "calibration": {"text": str(text_file), "samples": 4, "length": 32},
        "quantize": [{"match": "dense_mlp", "scheme": "int8-channel", "method": "rtn"}],
        "targets": [{"onnxruntime": {"accuracy_level": 1}}],
        "check": {"text": str(text_file), "tokens": 128, "length": 64},
    }


def nvlm(directory: Path, heads: int = 4, **changes: Any) -> Nvlm:
    """Write a checkpoint in bfloat16, of which one stored head is of zeros if `heads` is 4, and its tokenizer."""
    from safetensors.torch import save_file

    config = CONFIG | changes
    directory.mkdir(parents=True)
    text = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config["llm_config"]), dtype=torch.float32)
    text = text.eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in text.named_parameters():
        parameter.data = _random(name, parameter, generator).bfloat16().float()
    tensors = {name: _value(name, shape, generator) for name, shape in shapes(config, heads).items()}
    channels = config["vision_config"]["hidden_size"] // config["vision_config"]["num_attention_heads"]
    for name, tensor in tensors.items():
        if name.endswith("attn.qkv.weight"):
            tensor.unflatten(0, (3, heads, channels))[:, config["vision_config"]["num_attention_heads"] :] = 0
    stored = tensors | {f"language_model.{name}": tensor for name, tensor in text.state_dict().items()}
    stored = {name: tensor.bfloat16().contiguous() for name, tensor in stored.items()}
    save_file(stored, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(config))
    _tokenizer(directory)
    return Nvlm(config, tensors, text)


def _value(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    values = torch.randn(shape, generator=generator)
    if name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "ls1", "ls2", "mlp1.0.weight")):
        values = 1 + 0.2 * values
    elif len(shape) == 1:
        values = 0.1 * values
    elif "embedding" not in name or "patch" in name:
        values = values * (values[0].numel()) ** -0.5
    return values.bfloat16().float()


def _tokenizer(directory: Path) -> None:
    """Bytes, and the special tokens behind them."""
    vocabulary = {token: number for number, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(ADDED)
    made.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
