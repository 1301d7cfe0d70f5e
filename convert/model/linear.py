"""A linear layer that keeps its weight as small as it is stored."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from llmc.convert.quantized_weight import Activations, QuantizedWeight
from llmc.convert.spec import LinearSpec


class Linear(nn.Linear):
    """The weight may be held in a smaller dtype than that of the product, or as codes, and is widened on use.

    codes:         takes the place of `weight`, which is then empty

    Attributes:
        activations: how inputs are rounded; None: not at all
        compute_dtype: of the product; None: that of the input, which the output has in any case
        reads_block: see `LinearSpec`
    """

    quantized: QuantizedWeight | None = None
    activations: Activations | None = None
    compute_dtype: torch.dtype | None = None
    reads_block: bool = False

    @classmethod
    def of(cls, spec: LinearSpec) -> Linear:
        linear = cls(spec.inputs, spec.outputs, bias=spec.bias)
        linear.reads_block = spec.reads_block
        return linear

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Linear:
        """nn.Module's, by which a module is moved: codes go where the weight goes."""
        super()._apply(fn, recurse)
        if self.quantized is not None:
            self.quantized = self.quantized.to(fn(self.quantized.scales).device)
        return self

    def full(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """[out, in]; no copy where the weight is held in this dtype."""
        return self.weight.to(dtype) if self.quantized is None else self.quantized.dequantize(dtype)

    def hold(self, weight: QuantizedWeight) -> None:
        """From now on computes with these; whoever holds the old weight keeps it."""
        self.quantized, self.activations = weight, weight.activations
        self.weight = nn.Parameter(torch.empty(0), requires_grad=False)

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # named as in nn.Linear
        if self.activations is not None:
            input = self.activations.rounded(input)
        dtype = self.compute_dtype or input.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        x = input.to(dtype)
        if dtype == torch.bfloat16 and x.dim() == 2 and not x.is_cuda:
            x = functional.pad(x, (0, 0, 0, _rounded_up(len(x)) - len(x)))
        y = functional.linear(x, self.full(dtype), bias)
        return (y[: len(input)] if input.dim() == 2 else y).to(input.dtype)


def _rounded_up(rows: int) -> int:
    """To 2^k or 3/4 of it: oneDNN compiles a bfloat16 kernel of its own for every number of rows and keeps it, about a
    megabyte each; experts have tokens in any number.
    """
    power = max(32, 1 << (rows - 1).bit_length())
    return power * 3 // 4 if rows <= power * 3 // 4 else power


def compute_in(layer: nn.Module, dtype: torch.dtype | None) -> None:
    """Sets `compute_dtype` of all linear layers in it."""
    for module in layer.modules():
        if isinstance(module, Linear):
            module.compute_dtype = dtype
