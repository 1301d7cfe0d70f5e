"""Modules with weights, as a spec lists them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from llmc.convert.model.linear import Linear
from llmc.convert.model.rms_norm import RMSNorm
from llmc.convert.spec import ConvolutionSpec, GateSpec, LinearSpec, ModuleSpec, NormSpec, VectorSpec


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


def _module(spec: LinearSpec | NormSpec | VectorSpec | ConvolutionSpec) -> nn.Module:
    if isinstance(spec, LinearSpec):
        return Linear.of(spec)
    return RMSNorm(spec) if isinstance(spec, NormSpec) else Vector(*spec.shapes()["weight"])


class Vector(nn.Module):
    """Numbers of a block's own."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(shape))
