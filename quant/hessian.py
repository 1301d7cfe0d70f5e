"""What GPTQ needs to know of a layer's inputs: for each linear layer the sum of x x' over the calibration tokens."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import torch
from torch import nn

# Modules that read the same input share one Hessian: the second name is the one that is observed.
_SAME_INPUT = (
    ("up_proj", "gate_proj"),
    ("k_proj", "q_proj"),
    ("v_proj", "q_proj"),
)
_EXPERT = re.compile(r"mlp\.experts\.(\d+)\.(\w+)")


def observed(name: str, names: Iterable[str]) -> str:
    """The module whose input stands for that of `name`; names are those inside a layer."""
    if name.endswith("self_attn.kv_a_proj_with_mqa"):
        full_rank = "self_attn.q_proj" in set(names)
        return "self_attn.q_proj" if full_rank else "self_attn.q_a_proj"
    for name_end, twin in _SAME_INPUT:
        if name.endswith(f".{name_end}"):
            return name.removesuffix(name_end) + twin
    return name


def expert_of(name: str) -> tuple[int, str] | None:
    """(expert, projection) of a routed expert's linear layer; None for every other."""
    match = _EXPERT.fullmatch(name)
    return (int(match[1]), match[2]) if match else None


class Hessians:
    """Sums x x' for the named linear layers of one layer, in float32, while attached."""

    def __init__(self, layer: nn.Module, names: list[str]) -> None:
        self.sums: dict[str, torch.Tensor] = {}
        self.tokens: dict[str, int] = {}
        modules = dict(layer.named_modules())
        self._handles = []
        for name in names:
            module = modules[name]
            assert isinstance(module, nn.Linear)
            self.sums[name] = torch.zeros(module.in_features, module.in_features)
            self.tokens[name] = 0
            self._handles.append(module.register_forward_pre_hook(self._observer(name)))

    def _observer(self, name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def observe(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            x = inputs[0].flatten(0, -2).float()
            self.sums[name].addmm_(x.mT, x)
            self.tokens[name] += len(x)

        return observe

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()
