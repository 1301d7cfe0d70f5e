"""GPTQ's own layout, version 2: integers with or without zeros and dynamic act-order; GPTQModel loads it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch

from llmc.convert.formats.gptq import gptq_tensors
from llmc.convert.quantised_weight import QuantisedWeight
from llmc.quant.layouts.layout import Layout
from llmc.quant.layouts.patterns import patterns
from llmc.quant.schemes import scheme
from llmc.quant.schemes.integer import Integer
from llmc.quant.schemes.scheme import Scheme


class GPTQ(Layout):
    """`dynamic` of its config names what is quantised in another way than most, and what is not."""

    name = "gptq"
    stores = "integers (int2 to int8, -asym, -actorder)"
    readers = "GPTQModel loads them"

    def takes(self, scheme: Scheme) -> bool:
        return isinstance(scheme, Integer)

    def tensors(self, module: str, scheme: Scheme, weight: QuantisedWeight) -> dict[str, torch.Tensor]:
        return gptq_tensors(module, weight)

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


def _settings(scheme: Scheme) -> dict[str, Any]:
    assert isinstance(scheme, Integer)
    return {
        "bits": scheme.bits,
        "group_size": scheme.group_size or -1,
        "sym": scheme.symmetric,
        "desc_act": scheme.dynamic_groups,
    }


LAYOUT = GPTQ()
