"""MXFP4 as gpt-oss is published: `weight_blocks` U8 [out, in / 32, 16] and `weight_scales` U8 [out, in / 32] (E8M0).

On disk they are stacks over experts, `gate_up_proj_blocks`; these are the names that one expert's matrix has after its
family has told the stacks apart. Two codes a byte, the lower four bits first; a scale s is 2^(s - 127).
Source: `convert_moe_packed_tensors` in integrations/mxfp4.py of transformers.
"""

from __future__ import annotations

from llmc.convert.fields import Fields
from llmc.convert.formats.float4 import MXFP4
from llmc.convert.formats.format import Format
from llmc.convert.formats.layout import Source
from llmc.convert.safetensors_file import StoredTensor


class MXFP4Blocks(MXFP4):
    name = "mxfp4-blocks"
    part_names = frozenset({"weight_blocks", "weight_scales"})
    key = qweight_part = "weight_blocks"
    scales_part = "weight_scales"

    def _shape(self, codes: StoredTensor) -> tuple[int, int] | None:
        if len(codes.shape) != 3 or codes.shape[2] * 2 != self.group:
            return None
        return codes.shape[0], codes.shape[1] * self.group


class GptOss(Source):
    """`modules_to_not_convert` adds nothing: what is stored so has blocks."""

    name = method = "mxfp4"
    formats = (MXFP4Blocks,)

    def read(self, quantization: Fields) -> tuple[Format, ...]:
        return (MXFP4Blocks(),)


SOURCE = GptOss()
