"""The weights of one rank, cut when they are read from what is stored; see tensor_parallel.py."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.formats import Format, Parts
from llmc.convert.graph.build import EMBEDDING
from llmc.convert.quantized_weight import QuantizedWeight, QuantSpec
from llmc.convert.safetensors_file import StoredTensor

HEAD = "lm_head.weight"


@dataclass(frozen=True)
class Cut:
    """Of one axis of a tensor, the entries [start, stop)."""

    axis: int
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.narrow(self.axis, self.start, self.size)

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[: self.axis], self.size, *shape[self.axis + 1 :])

    def kind(self, kind: QuantSpec, shape: tuple[int, ...]) -> QuantSpec:
        """What `kind`, of a matrix of `shape`, becomes: its blocks smaller where one would lie in two ranks."""
        block = list(kind.block)
        if block[self.axis] >= shape[self.axis]:
            block[self.axis] = self.size
        elif not (kind.g_idx and self.axis):  # groups of scattered channels stay what they are
            block[self.axis] = math.gcd(block[self.axis], self.start, self.size)
        return kind._replace(block=(block[0], block[1]))

    def weight(self, weight: QuantizedWeight) -> QuantizedWeight:
        axis, old, new = self.axis, weight.block, self.kind(weight.kind, weight.shape).block

        def blockwise(scales: torch.Tensor) -> torch.Tensor:
            if old[axis] >= weight.shape[axis] or (weight.g_idx is not None and axis):
                return scales
            if new[axis] != old[axis]:
                scales = scales.repeat_interleave(old[axis] // new[axis], axis)
            first = self.start // new[axis]
            return scales.narrow(axis, first, -(-self.stop // new[axis]) - first)

        two_level, g_idx = weight.two_level, weight.g_idx
        return replace(
            weight,
            qweight=self.of(weight.qweight),
            scales=blockwise(weight.scales),
            block=new,
            zero_points=None if weight.zero_points is None else blockwise(weight.zero_points),
            g_idx=g_idx if g_idx is None or not axis else g_idx[self.start : self.stop],
            two_level=two_level and replace(two_level, codes=blockwise(two_level.codes)),
        )


@dataclass(frozen=True, eq=False)
class RankCheckpoint(Checkpoint):
    """What one of `ranks` holds of the checkpoint `whole`. Biases of what is added up are the first rank's alone."""

    rank: int = field(kw_only=True)
    whole: Checkpoint = field(kw_only=True)
    cuts: Mapping[str, Cut] = field(kw_only=True)
    absent: frozenset[str] = field(kw_only=True)  # of zeros here

    def __contains__(self, name: object) -> bool:
        return name in self.whole or name in self.cuts

    def shape(self, name: str) -> tuple[int, ...]:
        shape = self.whole.shape(self._source(name))
        return self.cuts[name].shape(shape) if name in self.cuts else shape

    def tensor(self, name: str, dtype: torch.dtype | None = torch.float32) -> torch.Tensor:
        if weight := self.quantized_tensor(name):
            return weight.dequantize(dtype or torch.float32)
        tensor = self.whole.tensor(self._source(name), dtype)
        if name in self.absent:
            return torch.zeros_like(tensor)
        return self.cuts[name].of(tensor) if name in self.cuts else tensor

    def quantized_tensor(self, name: str) -> QuantizedWeight | None:
        weight = self.whole.quantized_tensor(self._source(name))
        return self.cuts[name].weight(weight) if weight and name in self.cuts else weight

    def kind(self, name: str) -> QuantSpec | None:
        source = self._source(name)
        kind = self.whole.kind(source)
        return self.cuts[name].kind(kind, self.whole.shape(source)) if kind and name in self.cuts else kind

    def format_of(self, name: str) -> Format | None:
        return self.whole.format_of(self._source(name))

    def stored(self, name: str) -> StoredTensor:
        """Where the whole tensor lies."""
        return self.whole.stored(self._source(name))

    def parts(self, name: str) -> Parts:
        return self.whole.parts(self._source(name))

    def _source(self, name: str) -> str:
        """A rank has a part of the head, also where the head is the embedding."""
        return EMBEDDING if name == HEAD and self.whole.spec.tie_word_embeddings else name
