"""How quantized weights lie on disk: one file per format, each decoding to a `QuantizedWeight`.

A format sees the stored tensors of one module (`parts`: last name component → tensor, for instance
`{"weight": …, "weight_scale_inv": …}`) and works from headers until `decode` is called.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from llmc.convert.fields import Fields
from llmc.convert.formats.float_quantized import FloatQuantized
from llmc.convert.formats.gptq import GPTQ
from llmc.convert.formats.native_fp8 import NativeFP8
from llmc.convert.formats.pack_quantized import PackQuantized
from llmc.convert.quantized_weight import Activations, QuantizedWeight
from llmc.convert.safetensors_file import StoredTensor
from llmc.errors import InputError
from llmc.patterns import Budget

Parts = Mapping[str, StoredTensor]

_MAX_GROUPS = 256
# What a quantized module stores; any other last name component (`bias`) is a tensor of its own.
PART_NAMES = (
    "weight",
    "weight_packed",
    "weight_scale",
    "weight_scale_inv",
    "weight_shape",
    "input_scale",
    "weight_zero_point",
    "weight_g_idx",
    "qweight",
    "qzeros",
    "scales",
    "g_idx",
)


class Format(Protocol):
    @property
    def key(self) -> str:
        """The part that tells this format from the others."""

    def matches(self, module: str) -> bool:
        """Whether a module that has this part is stored in this format."""

    def shape(self, parts: Parts) -> tuple[int, int]:
        """[out, in] of the weight, from headers; InputError when the parts do not fit together."""

    def activations_of(self, parts: Parts) -> Activations | None:
        """How inputs are rounded; None: they stay as they are."""

    def decode(self, parts: Parts) -> QuantizedWeight:
        """Reads codes and scales as they are stored."""


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
    if method == "fp8":
        return (NativeFP8.from_config(quantization),)
    if method == "gptq":
        return GPTQ.from_config(quantization)
    if method != "compressed-tensors":
        if method is None and (quantization.config.get("load_in_4bit") or quantization.config.get("load_in_8bit")):
            method = "bitsandbytes"
        raise InputError(
            f"`quantization_config.quant_method` {method!r} cannot be read; "
            "use the unquantized checkpoint, or one in DeepSeek FP8, GPTQ or compressed-tensors layout"
        )
    sparse = quantization.mapping("sparsity_config").config.get("format", "dense")
    if sparse != "dense":
        raise InputError(
            f"`quantization_config.sparsity_config.format` {sparse!r} cannot be read; save the model uncompressed, or "
            "use the checkpoint that it was made from"
        )
    groups = quantization.mapping("config_groups")
    if len(groups.config) > _MAX_GROUPS:
        raise InputError(f"`{groups.prefix}` has {len(groups.config):,} groups; at most {_MAX_GROUPS} are read")
    budget = Budget()
    # The outer format is "mixed-precision" when the groups have one each.
    default = quantization.config.get("format")
    return tuple(_of_group(groups.mapping(name), default, budget) for name in groups.config)


def _of_group(group: Fields, default: Any, budget: Budget) -> Format:
    named = group.config.get("format") or default
    if named == "pack-quantized":
        return PackQuantized.from_config(group, budget)
    if named == "float-quantized":
        return FloatQuantized.from_config(group, budget)
    where = f"{group.prefix}format" if group.config.get("format") else "quantization_config.format"
    raise InputError(
        f"`{where}` {named!r} cannot be read, of compressed-tensors' formats only pack-quantized (integers) and "
        "float-quantized (FP8); use the checkpoint that it was made from"
    )
