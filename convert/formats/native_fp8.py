"""DeepSeek's own FP8: `weight` in E4M3 and `weight_scale_inv` in float32, one per 128x128 block.

Despite its name the scale multiplies. Edge blocks are ragged: `kv_a_proj_with_mqa` has 576 rows, 4.5 blocks. Programs
that run it round these layers' inputs, too, 128 channels of a token at a time; what counts as the original here is the
weights with inputs as they are.
Source: `weight_dequant` in inference/kernel.py of the DeepSeek-V3 repository.
"""

from __future__ import annotations

from llmc.convert.fields import Fields
from llmc.convert.formats.float_quantized import FloatQuantized
from llmc.patterns import Budget


class NativeFP8(FloatQuantized):
    @classmethod
    def from_config(cls, quantization: Fields, budget: Budget | None = None) -> NativeFP8:
        quantization.one_of("fmt", "e4m3", default="e4m3")
        quantization.one_of("activation_scheme", "dynamic", default="dynamic")
        return cls("block", quantization.block("weight_block_size"), key="weight_scale_inv")
