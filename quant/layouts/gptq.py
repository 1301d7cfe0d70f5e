"""GPTQ's own layout, version 2: integers with or without zeros and dynamic act-order; GPTQModel loads it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch

from llmc.convert.formats.gptq import gptq_tensors
from llmc.convert.quantized_weight import QuantizedWeight
from llmc.errors import InputError
from llmc.quant.layouts.layout import DEFAULT_LAYOUT, Layout
from llmc.quant.layouts.patterns import patterns
from llmc.quant.schemes import scheme
from llmc.quant.schemes.integer import Integer
from llmc.quant.schemes.scheme import Scheme

# Relative squared error of a weight that float16 scales may add: a thousandth of what 4 bits do, a third of 8 bits.
_LOST = 1e-5


class GPTQ(Layout):
    """`dynamic` of its config names what is quantized in another way than most, and what is not.

    Its scales are float16, from 6e-8 to 65504, with all bits only from 6e-5 on. A model is the same when its norms are
    larger and the weights behind them smaller, but these scales are not.
    """

    name = "gptq"
    stores = "integers (int2 to int8, -asym, -actorder)"
    readers = "GPTQModel loads them"

    narrows = True

    def takes(self, scheme: Scheme) -> bool:
        return isinstance(scheme, Integer)

    def tensors(self, module: str, scheme: Scheme, weight: QuantizedWeight) -> dict[str, torch.Tensor]:
        if not weight.scales.is_meta:
            exact, narrowed = weight.dequantize(), replace(weight, scales=weight.scales.half()).dequantize()
            _require_small(module, (narrowed - exact).square().sum(), exact.square().sum())
        return gptq_tensors(module, weight)

    def require_range(self, module: str, weight: torch.Tensor, scheme: Scheme) -> int:
        """By the largest weight of each group: its scale is that, at most half of it shared off, by the steps."""
        groups = weight.unflatten(-1, (-1, scheme.block((weight.shape[0], weight.shape[1]))[1]))
        largest, energy = groups.abs().amax(-1) / scheme.highest, groups.double().square().sum(-1)
        ends = torch.stack([largest, largest / 2]).double()
        lost = ((ends.half() - ends) / ends.clamp(min=torch.finfo(torch.float64).tiny)).square().amax(0)
        _require_small(module, (lost * energy).sum(), energy.sum())
        return int(((lost > _LOST) & (energy > 0)).sum())

    def config(self, schemes: dict[str, str], all_modules: Iterable[str], fp8_cache: bool) -> dict[str, Any]:
        usual = Counter(schemes.values()).most_common(1)[0][0]
        dynamic: dict[str, Any] = {}
        for other in sorted({*schemes.values()} - {usual}):
            for pattern in patterns(module for module, given in schemes.items() if given == other):
                dynamic[f"+:{pattern}"] = _settings(scheme(other))
        for pattern in patterns(module for module in all_modules if module not in schemes):
            dynamic[f"-:{pattern}"] = {}
        config = {"quant_method": "gptq", "checkpoint_format": "gptq_v2", "pack_dtype": "int32", "lm_head": False}
        return config | _settings(scheme(usual)) | ({"dynamic": dynamic} if dynamic else {})


def _require_small(module: str, lost: torch.Tensor, whole: torch.Tensor) -> None:
    if not lost <= _LOST * whole:  # NaN, too: of infinity times zero
        raise InputError(
            f"{module}: the scales of these weights do not fit into the float16 of layout gptq; "
            f"use layout {DEFAULT_LAYOUT}"
        )


def _settings(scheme: Scheme) -> dict[str, Any]:
    assert isinstance(scheme, Integer)
    return {
        "bits": scheme.bits,
        "group_size": scheme.group_size or -1,
        "sym": scheme.symmetric,
        "desc_act": scheme.dynamic_groups,
    }


LAYOUT = GPTQ()
