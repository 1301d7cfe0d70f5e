"""What GPTQ needs to know of a layer's inputs: for each of them the sum of x x' over the calibration tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from llmc.convert.model import Linear
from llmc.convert.tensor_names import ModuleName
from llmc.errors import LlmcError
from llmc.quant.overflow import refuse_overflow

# Tokens of a source that are held out of its Hessian to judge by: so many in all, and of those that come at once an
# eighth, but no more than so many.
HELD_OUT, _HELD_OUT_AT_ONCE, _SHARE_HELD_OUT = 256, 64, 8
_STRIP = 256  # columns of a Hessian that are summed at once, from the diagonal on: the rest is symmetry


def source(name: str, modules: Mapping[str, Linear]) -> str:
    """What a linear layer (by its name inside its decoder layer) reads, by the module that it is the input of: layers
    of one source share a Hessian. LlmcError for a name that the layer does not have.
    """
    if name not in modules:
        raise LlmcError(f"{name} is no linear layer of this model; this is a bug in llmc")
    return ModuleName.parse(name).parent if modules[name].reads_block else name


@dataclass
class HeldOut:
    """Tokens that a Hessian does not know, to judge by what was solved with it.

    Attributes:
        x: [n, in] each
        away: [n, in] each, what the original model has for them less what they are; of none if that is not known
    """

    x: list[torch.Tensor] = field(default_factory=list)
    away: list[torch.Tensor] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return sum(map(len, self.x))

    def take(self, x: torch.Tensor, original: torch.Tensor | None) -> int:
        """Keeps the last of [n, in], which follow each other in the text; returns how many are left."""
        left = len(x) - min(len(x) // _SHARE_HELD_OUT, _HELD_OUT_AT_ONCE, HELD_OUT - self.tokens)
        if left < len(x):
            self.x.append(x[left:].float().clone())
            if original is not None:
                self.away.append((original[left:] - x[left:]).float())
        return left


@dataclass
class HessianStats:
    """Sums over the tokens of one source, float32.

    Attributes:
        hessian: [in, in], the sum of x x'
        cross_covariance: [in, in], the sum of (x0 - x) x', x0 being what the original model has for x; None: unknown
        tokens: how many there were, those held out included
        amax: the largest magnitude in x
        held_out: takes some of what is added; None: all of it is summed
    """

    hessian: torch.Tensor
    cross_covariance: torch.Tensor | None
    tokens: int = 0
    amax: float = 0.0
    held_out: HeldOut | None = None

    @classmethod
    def empty(cls, size: int, with_cross: bool, device: torch.device) -> HessianStats:
        hessian = torch.zeros(size, size, device=device)
        return cls(hessian, torch.zeros_like(hessian) if with_cross else None)

    def add(self, x: torch.Tensor, original: torch.Tensor | None = None, name: str = "") -> None:
        """X [..., in], and the same tokens in the original model; OverflowInModelError, which says what `name` is read
        by, for numbers whose squares cannot be summed.
        """
        self.amax = max(self.amax, refuse_overflow(x, f"the inputs of {name}"))
        if original is not None:
            refuse_overflow(original, f"the original model's inputs of {name}")
        x, original = x.flatten(0, -2), None if original is None else original.flatten(0, -2)
        self.tokens += len(x)
        if self.held_out is not None:
            left = self.held_out.take(x, original)
            x, original = x[:left], None if original is None else original[:left]
        for start in range(0, x.shape[1], _STRIP):
            strip = slice(start, start + _STRIP)
            self.hessian[strip, start:].addmm_(x[:, strip].mT, x[:, start:])
        if self.cross_covariance is not None:
            assert original is not None
            self.cross_covariance.addmm_((original - x).mT, x)

    def symmetric(self) -> torch.Tensor:
        """[in, in]; below the diagonal `hessian` itself is only partly filled."""
        return self.hessian.triu() + self.hessian.triu(1).mT


@dataclass
class CalibrationStats:
    """Moments by source, which of them stand on tokens that are not their own, and whether some tokens are held out."""

    moments: dict[str, HessianStats] = field(default_factory=dict)
    blended: set[str] = field(default_factory=set)
    holds_out: bool = True

    def add(self, name: str, x: torch.Tensor, original: torch.Tensor | None = None) -> None:
        if name not in self.moments:
            self.moments[name] = HessianStats.empty(x.shape[-1], original is not None, x.device)
            self.moments[name].held_out = HeldOut() if self.holds_out else None
        self.moments[name].add(x, original, name)

    def blend(self, name: str, others: HessianStats, tokens: float) -> None:
        """Adds what so many average tokens of `others` would have."""
        share = tokens / max(1, others.tokens)
        empty = HessianStats.empty(len(others.hessian), others.cross_covariance is not None, others.hessian.device)
        mine = self.moments.setdefault(name, empty)
        mine.hessian += others.hessian * share
        mine.amax = max(mine.amax, others.amax)
        if mine.cross_covariance is not None and others.cross_covariance is not None:
            mine.cross_covariance += others.cross_covariance * share
        self.blended.add(name)
