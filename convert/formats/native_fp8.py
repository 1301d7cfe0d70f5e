"""DeepSeek's own FP8: `weight` in E4M3 and `weight_scale_inv` in float32, one per 128x128 block.

Despite its name the scale multiplies. Edge blocks are ragged: `kv_a_proj_with_mqa` has 576 rows, 4.5 blocks. Programs
that run it round these layers' inputs, too, 128 channels of a token at a time; what counts as the original here is the
weights with inputs as they are.
Source: `weight_dequant` in inference/kernel.py of the DeepSeek-V3 repository.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from llmc.convert.fields import Fields
from llmc.convert.formats.float_quantized import FloatQuantized
from llmc.convert.formats.format import Format
from llmc.convert.formats.layout import Layout, NamedSpec
from llmc.convert.quantized_weight import QuantizedWeight, QuantSpec
from llmc.patterns import Budget

_BLOCK = (128, 128)


class NativeFP8(FloatQuantized):
    name = "native-fp8"
    part_names = frozenset({"weight", "weight_scale_inv"})
    key = scales_part = "weight_scale_inv"

    @classmethod
    def from_config(cls, quantization: Fields, budget: Budget | None = None) -> NativeFP8:
        quantization.one_of("fmt", "e4m3", default="e4m3")
        quantization.one_of("activation_scheme", "dynamic", default="dynamic")
        return cls("block", quantization.block("weight_block_size"))

    @classmethod
    def takes(cls, spec: QuantSpec) -> bool:
        """Programs that load it round inputs, too, in groups, whether the scheme says so or not."""
        return super().takes(spec) and spec.block == _BLOCK and spec.activations in (None, "group")

    @classmethod
    def encode(cls, module: str, weight: QuantizedWeight, spec: QuantSpec) -> dict[str, torch.Tensor]:
        return {f"{module}.weight": weight.qweight, f"{module}.weight_scale_inv": weight.scales.float()}

    @classmethod
    def config(cls, spec: QuantSpec) -> dict[str, Any]:
        return {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [*_BLOCK]}


class NativeFP8Layout(Layout):
    """DeepSeek-V3 and R1 are published so."""

    name = "native-fp8"
    method = "fp8"
    formats = (NativeFP8,)
    stores = "fp8-block and fp8-block-dynamic"
    readers = "they are as DeepSeek publishes its models, and transformers loads them"

    def read(self, quantization: Fields) -> tuple[Format, ...]:
        return (NativeFP8.from_config(quantization),)

    def config(self, schemes: Mapping[str, NamedSpec], modules: Iterable[str], fp8_cache: bool) -> dict[str, Any]:
        config = NativeFP8.config(next(iter(schemes.values())).spec)
        plain = [module for module in modules if module not in schemes]
        return config | ({"modules_to_not_convert": plain} if plain else {})


LAYOUT = NativeFP8Layout()
