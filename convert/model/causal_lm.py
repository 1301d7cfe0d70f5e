"""Blocks with weights: one layer at a time, or a whole small model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from llmc.convert.model.cache import LayerCache, layer_cache
from llmc.convert.model.decoder_layer import DecoderLayer
from llmc.convert.model.linear import Linear
from llmc.convert.model.multi_token_prediction import MultiTokenPrediction
from llmc.convert.model.rms_norm import RMSNorm
from llmc.convert.spec import ModelSpec
from llmc.convert.tensor_names import TensorName, module_of

if TYPE_CHECKING:
    from llmc.convert.checkpoint import Checkpoint


def empty_layer(spec: ModelSpec, index: int) -> DecoderLayer:
    """A layer on the meta device: names and shapes without memory."""
    with torch.device("meta"):
        return (MultiTokenPrediction if spec.is_mtp(index) else DecoderLayer)(spec, index)


def load_layer(checkpoint: Checkpoint, index: int, dtype: torch.dtype = torch.float32) -> DecoderLayer:
    """`model.layers.<index>` with its weights, dequantized; a MultiTokenPrediction from `num_layers` on.

    The router stays float32 (see GroupedTopK). Only this layer is in memory.
    """
    layer = empty_layer(checkpoint.spec, index)
    prefix = f"model.layers.{index}."
    weights = {
        name: checkpoint.tensor(prefix + name, torch.float32 if TensorName.parse(name).module.is_router else dtype)
        for name, _ in layer.named_parameters()
    }
    for name, module in layer.named_modules():
        if isinstance(module, Linear):
            module.activations = checkpoint.activations(prefix + name)
    layer.load_state_dict(weights, assign=True)
    layer.self_attn.cache_scales = checkpoint.cache_scales(index)
    return layer.requires_grad_(False).eval()


def load_stored_layer(checkpoint: Checkpoint, index: int) -> DecoderLayer:
    """Like `load_layer`, for computing in float32, but in the memory that the layer takes on disk: linear layers hold
    what is stored and widen it when they are called.
    """
    layer = empty_layer(checkpoint.spec, index)
    prefix, weights = f"model.layers.{index}.", {}
    for module_name, module in layer.named_modules():
        if isinstance(module, Linear) and (codes := checkpoint.quantized(prefix + module_name)):
            module.hold(codes)
    for name, parameter in layer.named_parameters():
        if parameter.is_meta:
            is_matrix = isinstance(layer.get_submodule(module_of(name)), Linear)
            weights[name] = checkpoint.tensor(prefix + name, None if is_matrix else torch.float32)
    layer.load_state_dict(weights, assign=True, strict=False)
    layer.self_attn.cache_scales = checkpoint.cache_scales(index)
    return layer.requires_grad_(False).eval()


def share_layer(spec: ModelSpec, index: int, layer: DecoderLayer) -> DecoderLayer:
    """Another layer of the same weights; replacing one in either leaves the other's as it is."""
    twin = empty_layer(spec, index)
    twin.self_attn.cache_scales = layer.self_attn.cache_scales
    for name, module in layer.named_modules():
        other = twin.get_submodule(name)
        for parameter_name, parameter in module.named_parameters(recurse=False):
            setattr(other, parameter_name, parameter)
        if isinstance(module, Linear):
            assert isinstance(other, Linear)
            other.quantized, other.activations = module.quantized, module.activations
    return twin.eval()


def load_embedding(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """[vocab_size, hidden_size], as it is looked up: scaled where the model scales it."""
    table, scale = checkpoint.tensor("model.embed_tokens.weight", dtype), checkpoint.spec.embedding_scale
    return table if scale == 1 else table.mul_(torch.tensor(scale, dtype=dtype))


def load_lm_head(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """[vocab_size, hidden_size]; the embedding when the two are tied."""
    name = "model.embed_tokens.weight" if checkpoint.spec.tie_word_embeddings else "lm_head.weight"
    return checkpoint.tensor(name, dtype)


def logits(spec: ModelSpec, hidden: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
    """Hidden [..., H] after the final norm, head [vocab_size, H] → [..., vocab_size]."""
    return scaled_logits(spec, functional.linear(hidden, head))


def scaled_logits(spec: ModelSpec, found: torch.Tensor) -> torch.Tensor:
    """What `lm_head` makes [..., vocab_size], which is overwritten, scaled and capped where the model does so."""
    if spec.logits_scale != 1:
        found *= spec.logits_scale
    return found if spec.logits_softcap is None else (found / spec.logits_softcap).tanh_() * spec.logits_softcap


def load_final_norm(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> RMSNorm:
    """`model.norm`."""
    norm = RMSNorm(checkpoint.spec.final_norm)
    norm.weight = nn.Parameter(checkpoint.tensor("model.norm.weight", dtype), requires_grad=False)
    return norm


class CausalLM:
    """A whole model in memory: for small ones, and as the yardstick of everything faster."""

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype) -> None:
        self.spec, self.dtype = checkpoint.spec, dtype
        self.embedding = load_embedding(checkpoint, dtype)
        self.layers = [load_layer(checkpoint, index, dtype) for index in range(self.spec.num_all_layers)]
        self.norm = load_final_norm(checkpoint, dtype)
        tied = self.spec.tie_word_embeddings and self.spec.embedding_scale == 1
        self.lm_head = self.embedding if tied else load_lm_head(checkpoint, dtype)

    @classmethod
    def load(cls, checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> CausalLM:
        return cls(checkpoint, dtype)

    def new_cache(self, batch: int, capacity: int) -> list[LayerCache]:
        """An empty cache per layer, MTP layers included."""
        return [layer_cache(attention, batch, capacity, self.dtype) for attention in self.spec.attentions]

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Ids [B, S] → [B, S, H]."""
        return functional.embedding(ids, self.embedding)

    @torch.no_grad()
    def hidden(self, ids: torch.Tensor, caches: list[LayerCache] | None = None, for_mtp: bool = False) -> torch.Tensor:
        """Ids [B, S], the tokens after those in the cache → [B, S, H] after the final norm; or what MTP reads."""
        x = self.embed(ids)
        positions = _positions(
            ids, max(caches[: self.spec.num_layers], key=lambda each: each.length) if caches else None
        )
        for index in range(self.spec.num_layers):
            x = self.layers[index](x, positions, caches[index] if caches else None)
        return x if for_mtp and not self.spec.wiring.mtp_hidden_normed else self.norm(x)

    @torch.no_grad()
    def mtp(
        self, ids: torch.Tensor, hidden: torch.Tensor, cache: LayerCache | None = None, depth: int = 0
    ) -> torch.Tensor:
        """Ids [B, S] of tokens i + 1, hidden [B, S, H] of tokens i, made for MTP → [B, S, H] that predicts i + 2."""
        layer = self.layers[self.spec.num_layers + depth]
        return layer(self.embed(ids), hidden, _positions(ids, cache), cache)

    @torch.no_grad()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden [B, S, H] → [B, S, vocab_size] in float32."""
        return logits(self.spec, hidden, self.lm_head).float()


def _positions(ids: torch.Tensor, cache: LayerCache | None) -> torch.Tensor:
    start = cache.length if cache else 0
    return torch.arange(start, start + ids.shape[1]).expand(ids.shape[0], -1)
