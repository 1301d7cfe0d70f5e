"""compressed-tensors: any scheme for any module; transformers, vLLM and SGLang load it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from llmc.convert.fields import Fields
from llmc.convert.formats.float4 import MXFP4, NVFP4
from llmc.convert.formats.float_quantized import FloatQuantized
from llmc.convert.formats.format import Format
from llmc.convert.formats.layout import DEFAULT_LAYOUT, Layout, NamedSpec
from llmc.convert.formats.pack_quantized import PackQuantized
from llmc.convert.formats.patterns import patterns
from llmc.convert.quantized_weight import QuantSpec
from llmc.convert.tensor_names import ModuleName
from llmc.errors import InputError
from llmc.patterns import Budget

_MAX_GROUPS = 256
_CACHE_SCHEME = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor", "dynamic": False}
_NO_EXPERTS = "re:experts-as-they-are$"  # names experts, and matches no module
_FP8_CHANNEL = QuantSpec("float8_e4m3fn", (1, 0), zero_points=False, g_idx=False, activations=None)


class CompressedTensors(Layout):
    name = DEFAULT_LAYOUT
    method = "compressed-tensors"
    formats = (PackQuantized, FloatQuantized, NVFP4, MXFP4)
    stores = "all schemes but those with dynamic act-order, which compressed-tensors has dropped"
    readers = "transformers loads them where the package of that name is installed"
    takes_cache_scales = takes_ends = True

    def read(self, quantization: Fields) -> tuple[Format, ...]:
        sparse = quantization.mapping("sparsity_config").config.get("format", "dense")
        if sparse != "dense":
            raise InputError(
                f"`quantization_config.sparsity_config.format` {sparse!r} cannot be read; save the model uncompressed, "
                "or use the checkpoint that it was made from"
            )
        groups = quantization.mapping("config_groups")
        if len(groups.config) > _MAX_GROUPS:
            raise InputError(f"`{groups.prefix}` has {len(groups.config):,} groups; at most {_MAX_GROUPS} are read")
        budget = Budget()
        # The outer format is "mixed-precision" when the groups have one each.
        default = quantization.config.get("format")
        return tuple(_of_group(groups.mapping(name), default, budget) for name in groups.config)

    def config(self, schemes: Mapping[str, NamedSpec], modules: Iterable[str], fp8_cache: bool) -> dict[str, Any]:
        """Targets and ignored modules are regular expressions that match exactly those modules."""
        modules = list(modules)
        specs = {scheme.name: scheme.spec for scheme in schemes.values()}
        experts = _experts(schemes, modules)
        # transformers fuses experts and decodes those of all layers by the first group that names some.
        parts = [
            (
                [f"re:{each}" for each in patterns(module for module, given in schemes.items() if given.name == name)],
                spec,
            )
            for name, spec in sorted(specs.items(), key=lambda item: (item[0] not in experts, item[0]))
        ]
        mixed = (len(experts) > 1 or None in experts) and not all(map(FloatQuantized.takes, specs.values()))
        if experts and (mixed or any(name is not None and NVFP4.takes(specs[name]) for name in experts)):
            # By a group of integers it would drop experts that are floats, or take codes for others, and of NVFP4 it
            # drops the scale of the whole matrix; by a group of floats it takes floats as they are, and stops at codes.
            parts.insert(0, ([_NO_EXPERTS], _FP8_CHANNEL))
        groups = {}
        for number, (targets, spec) in enumerate(parts):
            nothing = {"input_activations": None, "output_activations": None}
            groups[f"group_{number}"] = {"targets": targets} | nothing | self.format_of(spec).config(spec)
        ignored = [f"re:{each}" for each in patterns(module for module in modules if module not in schemes)]
        formats = {group["format"] for group in groups.values()}
        return {
            "quant_method": self.method,
            "format": formats.pop() if len(formats) == 1 else "mixed-precision",
            "quantization_status": "compressed",
            "config_groups": groups,
            "ignore": [*ignored, *([] if any(each.endswith("lm_head") for each in schemes) else ["lm_head"])],
            "kv_cache_scheme": _CACHE_SCHEME if fp8_cache else None,
        }

    def obstacle(self, specs: Mapping[str, Collection[QuantSpec]], plain_experts: bool) -> str:
        """As of transformers 5.24 with compressed-tensors 0.20."""
        loaded = {role: found for role, found in specs.items() if role != "mtp"}  # it leaves MTP layers alone
        experts = loaded.get("experts", ())
        if loaded.get("embedding"):
            return "it has no quantized embeddings, nor heads that are one matrix with them"
        if any(spec.zero_points for found in loaded.values() for spec in found):
            return "it cannot read zero points"
        if len(experts) + plain_experts > 1 and not all(map(FloatQuantized.takes, experts)):
            return "it wants all experts stored in one way"
        if any(map(NVFP4.takes, experts)):
            return "it drops a scale of experts in NVFP4"
        if any(FloatQuantized.takes(spec) and spec.block[0] > 1 for spec in experts):
            return "it takes FP8 experts with scales per channel or tensor, or in blocks in the layout native-fp8"
        return ""


def _of_group(group: Fields, default: Any, budget: Budget) -> Format:
    named = group.config.get("format") or default
    if named == "naive-quantized" and group.mapping("weights").config.get("type") == "float":
        named = FloatQuantized.name  # what early versions called it
    for known in (PackQuantized, FloatQuantized, NVFP4, MXFP4):
        if named == known.name:
            return known.from_config(group, budget)
    where = f"{group.prefix}format" if group.config.get("format") else "quantization_config.format"
    raise InputError(
        f"`{where}` {named!r} cannot be read, of compressed-tensors' formats only pack-quantized (integers), "
        "float-quantized (FP8), nvfp4-pack-quantized and mxfp4-pack-quantized; use the checkpoint that it was made from"
    )


def _experts(schemes: Mapping[str, NamedSpec], modules: list[str]) -> set[str | None]:
    """In which ways routed experts are stored, without those of MTP layers, which transformers does not load."""
    mtp = tuple(module.removesuffix("eh_proj") for module in modules if module.endswith(".eh_proj"))
    return {
        schemes[module].name if module in schemes else None
        for module in modules
        if ModuleName.parse(module).expert is not None and not module.startswith(mtp)
    }


LAYOUT = CompressedTensors()
