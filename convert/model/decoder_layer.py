"""One decoder layer in torch."""

from __future__ import annotations

import torch
from torch import nn

from llmc.convert import dataflow
from llmc.convert.layer_modules import own_modules
from llmc.convert.model.absent import Absent
from llmc.convert.model.cache import LayerCache
from llmc.convert.model.dense_mlp import DenseMLP
from llmc.convert.model.gated_delta_net import GatedDeltaNet
from llmc.convert.model.grouped_query_attention import GroupedQueryAttention
from llmc.convert.model.latent_attention import LatentAttention
from llmc.convert.model.mamba2 import Mamba2
from llmc.convert.model.mixture_of_experts import MixtureOfExperts
from llmc.convert.model.modules import add_modules
from llmc.convert.spec import (
    AbsentSpec,
    AttentionSpec,
    GatedDeltaNetSpec,
    LatentAttentionSpec,
    Mamba2Spec,
    MixtureOfExpertsSpec,
    MLPSpec,
    ModelSpec,
)

Attention = LatentAttention | GroupedQueryAttention | GatedDeltaNet | Mamba2 | Absent


class DecoderLayer(nn.Module):
    """`model.layers.<index>`; attribute names are tensor names."""

    def __init__(self, spec: ModelSpec, index: int) -> None:
        super().__init__()
        self.wiring, self.blocks = spec.wiring, spec.blocks(index)
        hidden_size, attention, mlp = spec.hidden_size, spec.attentions[index], spec.mlps[index]
        self.self_attn = _attention(attention, hidden_size)
        self.mlp = _mlp(mlp, hidden_size)
        add_modules(self, own_modules(spec, index))

    def forward(self, x: torch.Tensor, positions: torch.Tensor, cache: LayerCache | None = None) -> torch.Tensor:
        """X [B, S, H], positions [B, S] → [B, S, H]."""
        return dataflow.decoder_layer(TorchOps(self, positions, cache), x, self.wiring, self.blocks)


def _attention(spec: AttentionSpec, hidden_size: int) -> Attention:
    if isinstance(spec, LatentAttentionSpec):
        return LatentAttention(spec, hidden_size)
    if isinstance(spec, GatedDeltaNetSpec):
        return GatedDeltaNet(spec, hidden_size)
    if isinstance(spec, Mamba2Spec):
        return Mamba2(spec, hidden_size)
    return Absent(spec) if isinstance(spec, AbsentSpec) else GroupedQueryAttention(spec, hidden_size)


def _mlp(spec: MLPSpec, hidden_size: int) -> MixtureOfExperts | DenseMLP | Absent:
    if isinstance(spec, MixtureOfExpertsSpec):
        return MixtureOfExperts(spec, hidden_size)
    return Absent(spec) if isinstance(spec, AbsentSpec) else DenseMLP(spec, hidden_size)


class TorchOps:
    """The steps of a layer on tensors: whole sequences, or with a cache those tokens that follow what it holds."""

    def __init__(self, layer: DecoderLayer, positions: torch.Tensor, cache: LayerCache | None) -> None:
        self.layer, self.positions, self.cache = layer, positions, cache

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layer.get_submodule(name)(x)
        return y

    linear = norm

    def attention(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layer.self_attn(x, self.positions, self.cache)
        return y

    def mlp(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layer.mlp(x)
        return y

    def add(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x + y

    def scale(self, x: torch.Tensor, factor: float) -> torch.Tensor:
        return x * factor

    def concat(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.cat((x, y), dim=-1)
