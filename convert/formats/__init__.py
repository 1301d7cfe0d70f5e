"""How quantized weights lie on disk: one file per format, which reads and writes it, and one object per layout.

Every module here that defines `LAYOUT` adds a layout: the formats that one `quant_method` of config.json describes. One
that defines `SOURCE` adds what is read and not written.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from llmc.convert.fields import Fields
from llmc.convert.formats.format import Format, Parts
from llmc.convert.formats.layout import DEFAULT_LAYOUT, Layout, Source
from llmc.errors import InputError
from llmc.registry import Registry

__all__ = [
    "DEFAULT_LAYOUT",
    "Format",
    "Layout",
    "Parts",
    "Source",
    "cuts",
    "formats",
    "has_fp8_cache",
    "layout",
    "layouts",
    "part_names",
]


layouts: Registry[Layout] = Registry("layout", __name__, "LAYOUT")
layout = layouts.get
sources: Registry[Source] = Registry("quantization method", __name__, "SOURCE")


def _known() -> list[Source]:
    return [*layouts.all.values(), *sources.all.values()]


@functools.cache
def part_names() -> frozenset[str]:
    """Return what a quantized module may store; any other last name component (`bias`) is a tensor of its own."""
    return frozenset().union(*(known.part_names for each in _known() for known in each.formats))


@functools.cache
def cuts() -> dict[str, str]:
    """Return how parts are cut that are not cut with the rows of a weight: see `Format.cuts`."""
    return {part: how for each in _known() for known in each.formats for part, how in known.cuts.items()}


def has_fp8_cache(config: dict[str, Any], names: Mapping[str, Any]) -> bool:
    """Whether there are scales for the attention cache; InputError for others than we know.

    Args:
        config: Of the model.
        names: Of its tensors.
    """
    quantization = Fields(config).mapping("quantization_config")
    return bool(quantization.config) and _source(quantization).has_fp8_cache(quantization, names)


def formats(config: dict[str, Any]) -> tuple[Format, ...]:
    """The formats that config.json's `quantization_config` announces; InputError for what cannot be read."""
    quantization = Fields(config).mapping("quantization_config")
    return _source(quantization).read(quantization) if quantization.config else ()


def _source(quantization: Fields) -> Source:
    config = quantization.config
    method = config.get("quant_method")
    if method is None and config.get("quant_algo"):  # ModelOpt's own exporter leaves the method out
        method = "modelopt"
    for known in _known():
        if method == known.method:
            return known
    if method is None and (config.get("load_in_4bit") or config.get("load_in_8bit")):
        method = "bitsandbytes"
    raise InputError(
        f"`quantization_config.quant_method` {method!r} cannot be read; use the unquantized checkpoint, or one in "
        "DeepSeek FP8, GPTQ, AWQ, MXFP4, ModelOpt or compressed-tensors layout"
    )
