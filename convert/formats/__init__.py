"""How quantized weights lie on disk: one file per format, which reads and writes it, and one object per layout.

Every module here that defines `LAYOUT` adds a layout: the formats that one `quant_method` of config.json describes.
"""

from __future__ import annotations

import functools
from typing import Any

from llmc.convert.fields import Fields
from llmc.convert.formats.format import Format, Parts
from llmc.convert.formats.layout import DEFAULT_LAYOUT, Layout
from llmc.errors import InputError
from llmc.registry import Registry

__all__ = [
    "DEFAULT_LAYOUT",
    "Format",
    "Layout",
    "Parts",
    "cuts",
    "formats",
    "has_fp8_cache",
    "layout",
    "layouts",
    "part_names",
]


layouts: Registry[Layout] = Registry("layout", __name__, "LAYOUT")
layout = layouts.get


@functools.cache
def part_names() -> frozenset[str]:
    """Return what a quantized module may store; any other last name component (`bias`) is a tensor of its own."""
    return frozenset().union(*(known.part_names for each in layouts.all.values() for known in each.formats))


@functools.cache
def cuts() -> dict[str, str]:
    """Return how parts are cut that are not cut with the rows of a weight: see `Format.cuts`."""
    return {part: how for each in layouts.all.values() for known in each.formats for part, how in known.cuts.items()}


def has_fp8_cache(config: dict[str, Any]) -> bool:
    """Whether `quantization_config` announces scales for the attention cache; InputError for others than we know."""
    scheme = Fields(config).mapping("quantization_config").mapping("kv_cache_scheme")
    if not scheme.config:
        return False
    scheme.one_of("type", "float")
    scheme.one_of("num_bits", 8)
    scheme.one_of("strategy", "tensor")
    scheme.require("dynamic", False, "a cache's scales are found in calibration")
    return True


def formats(config: dict[str, Any]) -> tuple[Format, ...]:
    """The formats that config.json's `quantization_config` announces; InputError for what cannot be read."""
    quantization = Fields(config).mapping("quantization_config")
    if not quantization.config:
        return ()
    method = quantization.config.get("quant_method")
    for known in layouts.all.values():
        if method == known.method:
            return known.read(quantization)
    if method is None and (quantization.config.get("load_in_4bit") or quantization.config.get("load_in_8bit")):
        method = "bitsandbytes"
    raise InputError(
        f"`quantization_config.quant_method` {method!r} cannot be read; "
        "use the unquantized checkpoint, or one in DeepSeek FP8, GPTQ or compressed-tensors layout"
    )
