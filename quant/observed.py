"""Linear layers that show what they read, and the gradient of what they make, on the way back through a layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from llmc.convert.model import Linear, MixtureOfExperts
from llmc.convert.model.grouped_topk import GroupedTopK
from llmc.convert.tensor_names import ModuleName
from llmc.quant.layer_solver import linears


@dataclass(frozen=True)
class Observed:
    """Some tokens of a module on the way back.

    Attributes:
        module: its whole name
        x: [n, in] float32, what it multiplies by; of `model.embed_tokens` the token ids [n], int64
        gradient: [n, out] float32, of the log-likelihood of all drawn labels, summed, with respect to what it makes
        sequence: [n] int64, the row of ids that each token is of
        weight: the module: `weight.full()` is [out, in]; of `model.embed_tokens` [vocabulary, hidden], unscaled
        draw: which labels, from 0 on
    """

    module: str
    x: torch.Tensor
    gradient: torch.Tensor
    sequence: torch.Tensor
    weight: Linear
    draw: int = 0


Visit = Callable[[Observed], None]


@dataclass
class Observer:
    """Tells `visit` of the linear layers in what it `watches`.

    Attributes:
        visit: is told
        rows: of ids that are on their way
        length: tokens of a row
        draw: whose gradients are on their way
        routed: expert index [n, K] of the tokens on their way, as the router gave it
    """

    visit: Visit
    rows: slice = field(default_factory=lambda: slice(0, 0))
    length: int = 0
    draw: int = 0
    routed: torch.Tensor = field(default_factory=lambda: torch.empty(0))

    def watch(self, layer: nn.Module, prefix: str) -> None:
        """Puts observers in the place of a layer's linear layers."""
        for name, linear in linears(layer).items():
            layer.set_submodule(name, ObservedLinear(linear, prefix + name, self))
        for moe in [module for module in layer.modules() if isinstance(module, MixtureOfExperts)]:
            moe.gate = _NotedRouting(moe.gate, self)  # type: ignore[assignment]

    def sequence(self, tokens: torch.Tensor) -> torch.Tensor:
        """[n], the rows of ids that tokens, by their number among those on their way, are of."""
        return self.rows.start + tokens // self.length

    def tokens_of(self, name: ModuleName, count: int, device: torch.device) -> torch.Tensor:
        """[n], the numbers of the tokens that a module gets."""
        if name.expert is None:
            return torch.arange(count, device=device)
        return torch.where(self.routed == name.expert)[0]  # as MixtureOfExperts orders them


class ObservedLinear(nn.Module):
    """A linear layer without its own part in autograd's graph: its weight is widened once more on the way back,
    instead of being kept wide.
    """

    def __init__(self, linear: Linear, name: str, observer: Observer) -> None:
        super().__init__()
        self.linear, self.name, self.observer = linear, name, observer
        self.parsed = ModuleName.parse(name)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """X [..., in] → [..., out]"""
        tokens = self.observer.tokens_of(self.parsed, x[..., 0].numel(), x.device)
        y: torch.Tensor = _Product.apply(x, self, self.observer.sequence(tokens))
        return y

    def tell(self, x: torch.Tensor, gradient: torch.Tensor, sequence: torch.Tensor) -> None:
        """Has the observer told of x [..., in] and gradient [..., out]."""
        if self.linear.activations is not None:
            x = self.linear.activations.rounded(x)
        flat = x.detach().flatten(0, -2).float(), gradient.flatten(0, -2).float()
        self.observer.visit(Observed(self.name, *flat, sequence, self.linear, self.observer.draw))


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, module: ObservedLinear, sequence: torch.Tensor) -> torch.Tensor:
        ctx.module, ctx.sequence = module, sequence
        ctx.save_for_backward(x)
        y: torch.Tensor = module.linear(x.detach())
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (x,), gradient, linear = ctx.saved_tensors, gradients[0], ctx.module.linear
        ctx.module.tell(x, gradient, ctx.sequence)
        dtype = linear.compute_dtype or gradient.dtype
        return (gradient.to(dtype) @ linear.full(dtype)).to(x.dtype), None, None


class _NotedRouting(nn.Module):
    """A router whose choice the observer knows."""

    def __init__(self, gate: GroupedTopK, observer: Observer) -> None:
        super().__init__()
        self.gate, self.observer = gate, observer

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        index, weight = self.gate(x)
        self.observer.routed = index
        return index, weight


class SavedBytes(torch.autograd.graph.saved_tensors_hooks):
    """Counts, while it is entered, the bytes that autograd keeps for the way back."""

    def __init__(self) -> None:
        self.count, self._seen = 0, set[int]()
        super().__init__(self._note, lambda tensor: tensor)

    def _note(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen.add(storage._cdata)
            self.count += storage.nbytes()
        return tensor
