"""MXFP4 as gpt-oss is published: `weight_blocks` U8 [out, in / 32, 16] and `weight_scales` U8 [out, in / 32] (E8M0).

On disk they are stacks over experts, `gate_up_proj_blocks`; these are the names that one expert's matrix has after its
family has told the stacks apart. Two codes a byte, the lower four bits first; a scale s is 2^(s - 127).
Source: `convert_moe_packed_tensors` in integrations/mxfp4.py of transformers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch

from llmc.convert.bits import pack_e2m1
from llmc.convert.fields import Fields
from llmc.convert.formats.float4 import MXFP4
from llmc.convert.formats.format import Format
from llmc.convert.formats.layout import Layout, NamedSpec
from llmc.convert.quantized_weight import QuantizedWeight, QuantSpec
from llmc.convert.safetensors_file import StoredTensor


class MXFP4Blocks(MXFP4):
    name = "mxfp4-blocks"
    part_names = frozenset({"weight_blocks", "weight_scales"})
    key = qweight_part = "weight_blocks"
    scales_part = "weight_scales"
    stacked = True

    def _shape(self, codes: StoredTensor) -> tuple[int, int] | None:
        if len(codes.shape) != 3 or codes.shape[2] * 2 != self.group:
            return None
        return codes.shape[0], codes.shape[1] * self.group

    @classmethod
    def encode(cls, module: str, weight: QuantizedWeight, spec: QuantSpec) -> dict[str, torch.Tensor]:
        return {
            f"{module}.weight_blocks": pack_e2m1(weight.qweight).unflatten(1, (-1, cls.group // 2)),
            f"{module}.weight_scales": weight.scales.to(torch.float8_e8m0fnu).view(torch.uint8),
        }

    @classmethod
    def config(cls, spec: QuantSpec) -> dict[str, Any]:
        return {}  # there is nothing to say


class GptOss(Layout):
    """`modules_to_not_convert` adds nothing for us: what is stored so has blocks."""

    name = method = "mxfp4"
    formats = (MXFP4Blocks,)
    stores = "what gpt-oss is published in, experts in mxfp4"
    readers = "transformers loads them"
    keeps = True

    def read(self, quantization: Fields) -> tuple[Format, ...]:
        return (MXFP4Blocks(),)

    def config(self, schemes: Mapping[str, NamedSpec], modules: Iterable[str], fp8_cache: bool) -> dict[str, Any]:
        plain = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
        return {"quant_method": self.method, "modules_to_not_convert": plain}

    def obstacle(self, specs: Mapping[str, Collection[QuantSpec]], plain_experts: bool) -> str:
        """As of transformers 5.24."""
        return "it takes MXFP4 for experts alone" if specs.keys() - {"experts"} else ""


LAYOUT = GptOss()
