"""DeepSeek's own FP8: `weight` in E4M3 and `weight_scale_inv` in float32, one per 128x128 block.

Despite its name the scale multiplies. Edge blocks are ragged: `kv_a_proj_with_mqa` has 576 rows, 4.5 blocks. Programs
that run it round these layers' inputs, too, 128 channels of a token at a time; what counts as the original here is the
weights with inputs as they are.

The same `quant_method` has more spellings. Qwen3 stores the scales in bfloat16; DeepSeek-V3.1 and V3.2 store powers of
two (`scale_fmt` ue8m0), in float32 all the same. Without `weight_block_size` a matrix has one scale, and with
`activation_scheme` static one for its inputs: `weight_scale_inv` and `activation_scale` as transformers saves them
(Ministral 3), `weight_scale` and `input_scale` as vLLM's first checkpoints have them.
Source: `weight_dequant` in inference/kernel.py of the DeepSeek-V3 repository; integrations/finegrained_fp8.py of
transformers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from llmc.convert.fields import Fields
from llmc.convert.formats.float_quantized import FloatQuantized
from llmc.convert.formats.format import Format
from llmc.convert.formats.layout import Layout, NamedSpec
from llmc.convert.formats.modelopt import ModelOpt
from llmc.convert.quantized_weight import Activations, QuantizedWeight, QuantSpec
from llmc.patterns import Budget

_BLOCK = (128, 128)


class NativeFP8(FloatQuantized):
    name = "native-fp8"
    part_names = frozenset({"weight", "weight_scale_inv", "activation_scale"})
    cuts = {"activation_scale": "whole"}  # noqa: RUF012  # ClassVar in the base
    key = scales_part = "weight_scale_inv"
    input_part = "activation_scale"
    scale_types = (*FloatQuantized.scale_types, "F8_E8M0")

    @classmethod
    def from_config(cls, quantization: Fields, budget: Budget | None = None) -> NativeFP8:
        quantization.one_of("fmt", "e4m3", "float8_e4m3fn", default="e4m3")
        quantization.one_of("scale_fmt", "ue8m0", "float", default="float")
        if quantization.has("weight_block_size"):
            quantization.one_of("activation_scheme", "dynamic", default="dynamic")
            return cls("block", quantization.block("weight_block_size"))
        static = quantization.one_of("activation_scheme", "dynamic", "static", default="dynamic") == "static"
        return cls("tensor", activations=Activations("tensor") if static else None)

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
        native = NativeFP8.from_config(quantization)
        if quantization.has("quant_algo"):  # NVIDIA's NVFP4 experts in a model that is FP8 otherwise
            return (*ModelOpt().read(quantization)[:1], native)
        if native.block_size is not None:
            return (native,)
        return native, FloatQuantized("tensor", activations=native.activations)

    def config(self, schemes: Mapping[str, NamedSpec], modules: Iterable[str], fp8_cache: bool) -> dict[str, Any]:
        config = NativeFP8.config(next(iter(schemes.values())).spec)
        plain = [module for module in modules if module not in schemes]
        return config | ({"modules_to_not_convert": plain} if plain else {})


LAYOUT = NativeFP8Layout()
