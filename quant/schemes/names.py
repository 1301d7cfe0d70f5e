"""What users of other programs call schemes: other names for ours, and why there is none for some.

The presets (W4A16, FP8_DYNAMIC, …) are those of compressed-tensors, which llm-compressor and vLLM take. Case does not
matter, nor does `_` for `-`.
"""

from __future__ import annotations

import re

PRESETS = ("W4A16", "W4A16_ASYM", "W8A16", "FP8", "FP8_DYNAMIC", "FP8_BLOCK", "NVFP4", "NVFP4A16", "MXFP4", "MXFP4A16")
# These round inputs, too, and ours of the same names are of weights only: they are known in capitals alone.
_CAPITALS = {"FP8_BLOCK": "fp8-block-dynamic", "NVFP4": "nvfp4-static", "MXFP4": "mxfp4-dynamic"}
ALIASES = {
    "int2": "int2-g128",
    "int3": "int3-g128",
    "int4": "int4-g128",
    "int8": "int8-g128",
    "w2a16": "int2-g128",
    "w3a16": "int3-g128",
    "w4a16": "int4-g128",
    "w4a16-asym": "int4-g128-asym",
    "w8a16": "int8-g128",
    "fp8": "fp8-tensor-static",
    "fp8-dynamic": "fp8-channel-dynamic",
    "nvfp4a16": "nvfp4",
    "w4a16-nvfp4": "nvfp4",
    "w4a4-nvfp4": "nvfp4-static",
    "mxfp4a16": "mxfp4",
}

_EXPLAINED = {
    r"gptq|gptaq|yaqa|rtn": "is a method: write `method: {name}`, and a scheme such as int4-g128",
    r"awq": "is a method that llmc does not have; the method gptaq with int4-g128 takes its place",
    r"nf4|fp4|bnb.*|bitsandbytes": "is a format of bitsandbytes, which llmc does not write; int4-g64 is as small",
    r"gguf|i?q\d.*|ud-.*": "is a format of llama.cpp, which llmc does not write; int4-g32 is about as small as Q4_0",
    r"nvfp4-dynamic": "is what nvfp4-static does, but for one scale that calibration finds and programs ask for",
    r"mxfp4-static": "is no scheme: inputs have powers of two of their own, found as they come; use mxfp4-dynamic",
    r"mxfp8|nvfp8": "is not written by llmc; fp8-block takes its place",
    r"w[48]a[48].*": "rounds inputs to integers, which llmc does not do; int4-g128 and int8-channel round weights only",
    r"bf16|bfloat16|fp16|float16|fp32|float32|none": "is no scheme: what no rule matches keeps its precision",
}


def canonical(name: str) -> str:
    """Return our name for a scheme, or the name itself where it is no alias."""
    return _CAPITALS.get(name) or ALIASES.get(name.lower().replace("_", "-"), name)


def explanation(name: str) -> str | None:
    """Return why a name that other programs know is no scheme here, or None."""
    key = name.lower().replace("_", "-")
    found = next((text for pattern, text in _EXPLAINED.items() if re.fullmatch(pattern, key)), None)
    return None if found is None else found.format(name=key)
