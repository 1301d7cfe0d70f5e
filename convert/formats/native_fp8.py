"""DeepSeek's own FP8: `weight` in E4M3 and `weight_scale_inv` in float32, one per 128x128 block.

Despite its name the scale multiplies. Edge blocks are ragged: `kv_a_proj_with_mqa` has 576 rows, 4.5 blocks.
Source: `weight_dequant` in inference/kernel.py of the DeepSeek-V3 repository.
"""

from __future__ import annotations

from typing import Any

from llmc.convert.formats.float_quantized import FloatQuantized, block_size
from llmc.errors import InputError


class NativeFP8(FloatQuantized):
    @classmethod
    def from_config(cls, config: dict[str, Any], where: str = "quantization_config") -> NativeFP8:
        if config.get("fmt", "e4m3") != "e4m3":
            raise InputError(f"{where}.fmt {config['fmt']!r} cannot be read; known: e4m3")
        size = block_size(config.get("weight_block_size"), f"{where}.weight_block_size")
        return cls(size, key="weight_scale_inv")
