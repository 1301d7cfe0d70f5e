"""What the forms of MLA have in common as operations: a cache of latents, of numbers or of FP8's codes."""

from __future__ import annotations

from abc import abstractmethod
from typing import Protocol

from llmc.runtime.plugins.kernel_set import KernelSet
from llmc.runtime.plugins.operation import InputSpec, Operation


class CachedShape(Protocol):
    """What a model fixes of the cache: R + P `channels`; `dtype` of its numbers, unless they are codes, `float8`."""

    @property
    def channels(self) -> int: ...
    @property
    def dtype(self) -> str: ...
    @property
    def float8(self) -> bool: ...


class LatentCacheOperation(Operation):
    """Takes, among others, a cache [B, 1, T, R + P] and cache_position [B].

    The query at offset s of row b sees the entries t <= cache_position[b] + s. Scores are multiplied by `scale`; an FP8
    cache is E4M3 codes in int8, each to be multiplied by `cache_scale`.
    """

    scalars = ("scale", "cache_scale")

    def __init__(self, kernels: KernelSet, scale: float, cache_scale: float = 1.0) -> None:
        super().__init__(kernels)
        self.scale, self.cache_scale = scale, cache_scale

    @property
    @abstractmethod
    def shape(self) -> CachedShape: ...

    @property
    def cache_inputs(self) -> tuple[InputSpec, InputSpec]:
        """Of the cache and of cache_position."""
        kind = "i8" if self.shape.float8 else self.shape.dtype
        return InputSpec(kind, (None, 1, None, self.shape.channels)), InputSpec("i64", (None,))
