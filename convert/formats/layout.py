"""What a layout has to say: the formats that one kind of `quantization_config` can describe, and how it does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from typing import Any, ClassVar, Protocol

from llmc.convert.fields import Fields
from llmc.convert.formats.format import Format
from llmc.convert.quantized_weight import QuantSpec

DEFAULT_LAYOUT = "compressed-tensors"


class NamedSpec(Protocol):
    """What a layout has to know of a scheme: its name, and what it says of weights of any shape."""

    @property
    def name(self) -> str: ...

    @property
    def spec(self) -> QuantSpec: ...


class Source(ABC):
    """What is read from checkpoints of one `quant_method`.

    Attributes:
        name: As people call it.
        method: `quant_method` in config.json.
        formats: Those that its weights can have.
    """

    name: ClassVar[str]
    method: ClassVar[str]
    formats: ClassVar[tuple[type[Format], ...]]

    @abstractmethod
    def read(self, quantization: Fields) -> tuple[Format, ...]:
        """Return the formats that `quantization_config` announces, the first that matches a module counts.

        Raises:
            InputError: Something of it cannot be read.
        """

    def has_fp8_cache(self, quantization: Fields, names: Mapping[str, Any]) -> bool:
        """Tell whether there are scales for the attention cache; `names`: of all tensors.

        Raises:
            InputError: It is announced as something else than llmc knows.
        """
        scheme = quantization.mapping("kv_cache_scheme")
        if not scheme.config:
            return False
        scheme.one_of("type", "float")
        scheme.one_of("num_bits", 8)
        scheme.one_of("strategy", "tensor")
        scheme.require("dynamic", False, "a cache's scales are found in calibration")
        return True


class Layout(Source):
    """How a quantized checkpoint as a whole lies on disk, where llmc writes it, too.

    Attributes:
        name: As a recipe calls it.
        stores: For people: what it has a place for.
        readers: For people: who reads it.
        takes_cache_scales: Whether it has a place for the scales of an FP8 cache.
        keeps: Whether a recipe that asks for it and for no scheme wants what is there, and nothing quantized.
        in_vllm: Whether vLLM reads it.
        takes_ends: Whether those who read it take a quantized embedding or head.
    """

    stores: ClassVar[str]
    readers: ClassVar[str]
    takes_cache_scales: ClassVar[bool] = False
    keeps: ClassVar[bool] = False
    takes_ends: ClassVar[bool] = False
    in_vllm: ClassVar[bool] = True

    def takes(self, spec: QuantSpec) -> bool:
        """Tell whether weights of a scheme can be stored."""
        return any(known.takes(spec) for known in self.formats)

    def format_of(self, spec: QuantSpec) -> type[Format]:
        """Return the format that weights of a scheme are stored in, which the layout must take."""
        return next(known for known in self.formats if known.takes(spec))

    @property
    def narrows(self) -> bool:
        """Whether some of its formats may have too few bits for a scale."""
        return any(known.narrows for known in self.formats)

    @abstractmethod
    def config(self, schemes: Mapping[str, NamedSpec], modules: Iterable[str], fp8_cache: bool) -> dict[str, Any]:
        """Return `quantization_config` of config.json.

        Args:
            schemes: Of every quantized module.
            modules: Every linear layer that could have been quantized.
            fp8_cache: Whether there are scales for the attention cache.
        """

    def beside(self, config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Return further files by name, JSON objects that lie beside config.json and say the same; `config`: that."""
        return {}

    def cache_scale(self, name: str) -> str:
        """Return what a scale of a cache of keys and values is called; `name`: `….self_attn.k_scale` or `v_scale`."""
        return name

    def one_by_one(self, specs: Mapping[str, Collection[QuantSpec]]) -> list[str]:
        """Return the roles of which some weights are quantized and not in stacks; `specs`: see `obstacle`."""
        return [role for role, found in specs.items() if not all(self.format_of(spec).stacked for spec in found)]

    def obstacle(self, specs: Mapping[str, Collection[QuantSpec]], plain_experts: bool) -> str:
        """Return why transformers, which otherwise loads this layout, refuses what is stored so; empty: it does not.

        Args:
            specs: What the schemes of each role say of weights of any shape.
            plain_experts: Whether some experts stay floats.
        """
        return ""
