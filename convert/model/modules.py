"""Modules with weights, as a spec lists them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional

from llmc.convert.model.cache import StateCache
from llmc.convert.model.linear import Linear
from llmc.convert.model.rms_norm import RMSNorm
from llmc.convert.spec import ConvolutionSpec, GateSpec, LinearSpec, MatrixSpec, ModuleSpec, NormSpec, VectorSpec


def add_modules(block: nn.Module, specs: Mapping[str, ModuleSpec]) -> None:
    """Gives a block its linear layers and norms, by their names in it, `shared_head.norm` for instance."""
    for name, spec in specs.items():
        assert not isinstance(spec, GateSpec)
        parent, last = block, name
        while "." in last:
            first, _, last = last.partition(".")
            if not hasattr(parent, first):
                parent.add_module(first, nn.Module())
            parent = parent.get_submodule(first)
        parent.add_module(last, _module(spec))


def _module(spec: LinearSpec | NormSpec | VectorSpec | ConvolutionSpec | MatrixSpec) -> nn.Module:
    if isinstance(spec, LinearSpec):
        return Linear.of(spec)
    if isinstance(spec, ConvolutionSpec):
        return Convolution(spec)
    return RMSNorm(spec) if isinstance(spec, NormSpec) else Vector(*spec.shapes()["weight"])


class Vector(nn.Module):
    """Numbers of a block's own."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(shape))


class Convolution(nn.Module):
    """Of every channel by itself, over the tokens up to its own."""

    def __init__(self, spec: ConvolutionSpec) -> None:
        super().__init__()
        shapes = spec.shapes()
        self.weight = nn.Parameter(torch.zeros(shapes["weight"]))
        self.bias = nn.Parameter(torch.zeros(shapes["bias"])) if spec.bias else None
        self.width = spec.width

    def forward(self, x: torch.Tensor, cache: StateCache | None = None) -> torch.Tensor:
        """X [B, S, channels] → the same, behind what the cache has of the tokens before."""
        before = self.width - 1
        x = x.transpose(1, 2)
        x = functional.pad(x, (before, 0)) if cache is None else torch.cat((cache.convolved.to(x.dtype), x), dim=-1)
        if cache is not None:
            cache.convolved = x[..., x.shape[-1] - before :].to(cache.convolved.dtype)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return functional.conv1d(x, self.weight.to(x.dtype), bias, groups=x.shape[1]).transpose(1, 2)
