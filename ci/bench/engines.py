#!/usr/bin/env python3
"""Which weights stay what they are in an engine: every family, kind of scheme and GPU, compiled.

    python ci/bench/engines.py
    python ci/bench/engines.py --families llama --schemes int4-g128 fp8-block

Every cell is read from the compiled programs of a small model of the family whose linear layers are all stored in the
scheme (experts, shared and dense MLPs, attention): the types of the codes that products read, or why it was refused.
"plugin" are codes that a plugin's kernels read, "gathered" those of which only the chosen experts' are read and
decoded; what the compiler has no codes for is bfloat16. "decoded" are codes that a kernel of its own writes as floats
into memory: "decoded when decoding" in the steps of a token or two, which exits with 1, "decoded in prompts" in others.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from engine_models import FAMILIES, quantized
from rich.console import Console
from rich.table import Table

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.targets import target
from llmc.errors import LlmcError

rtx = target("tensorrt-rtx")
SMS = (80, 86, 89, 120)
ROLES = {
    "llama": ("dense_mlp", "attention"),
    "qwen2": ("dense_mlp", "attention"),
    "deepseek_v3": ("dense_mlp", "shared_experts", "experts", "attention"),
}
SCHEMES = (
    "int4-g128", "int4-g64", "int4-g32", "int4-channel", "int4-g128-asym", "int4-g128-actorder", "int3-g64", "int2-g32",
    "int8-g128", "int8-channel", "nvfp4", "mxfp4", "fp8-block", "fp8-channel", "fp8-tensor", "fp8-channel-static",
    "fp8-channel-dynamic", "bfloat16, FP8 cache",
)  # fmt: skip
CODES = {"int4": "int4", "int8": "int8", "fp8_e4m3": "fp8", "fp4_e2m1": "fp4"}  # as programs call them
LOST = "decoded when decoding"


def cells(family: str, scheme: str, plugins: bool, work: Path) -> dict[int, str]:
    """By SM: what became of the weights."""
    name = scheme.partition(",")[0]
    roles = {} if name == "bfloat16" else dict.fromkeys(ROLES[family], name)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            checkpoint = quantized(FAMILIES[family], roles, work, fp8_cache="FP8 cache" in scheme)
        options = rtx.Options(sm=list(SMS), context=32, plugins=plugins)
        result = rtx.build(checkpoint, options, checkpoint.path, lambda *_: None)
    except LlmcError as error:
        return dict.fromkeys(SMS, f"refused: {error}")
    main = [name for name in result.details if not name.endswith("-mtp")]
    return {sm: cell(checkpoint, name) for name in main for sm in result.details[name]["sm"]}


def cell(checkpoint: Checkpoint, engine: str) -> str:
    """Of an engine and, if there is one, of that of the layer for multi-token prediction."""
    said: list[dict[str, Any]] = [
        json.loads(path.read_text())
        for name in (engine, f"{engine}-mtp")
        if (path := checkpoint.path / f"engines/{name}.json").exists()
    ]
    steps = [
        (profile["tokens"][1] <= 2, program)
        for each in said
        for profile, program in zip(each["profiles"], each["programs"], strict=True)
    ]
    found = {CODES[kind] for _, program in steps for kind in program.get("multiplied_bytes", ())}
    found |= {"plugin" for _, program in steps if program.get("plugin_bytes")}
    found |= {f"{CODES[kind]} gathered" for _, program in steps for kind in program.get("gathered_bytes", ())}
    for narrow, program in steps:
        found |= {
            f"{CODES[kind]} {LOST if narrow else 'decoded in prompts'}" for kind in program.get("decoded_bytes", ())
        }
    cache = {io["dtype"] for each in said for io in each["inputs"] if io["name"].startswith("past.")}
    weights = " + ".join(sorted(found)) or "bf16"
    return weights + (" (cache: int8)" if cache == {"int8"} else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="*", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--schemes", nargs="*", default=list(SCHEMES))
    parser.add_argument("--markdown", type=Path, help="write the table there, too")
    args = parser.parse_args()
    columns = [(family, True) for family in args.families]
    if "deepseek_v3" in args.families:
        columns.append(("deepseek_v3", False))
    names = [family + ("" if plugins else ", no plugins") for family, plugins in columns]
    table = Table("scheme", *names, title=f"constants of engines for SM {', '.join(map(str, SMS))}", show_lines=True)
    lines = [f"| scheme | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    with tempfile.TemporaryDirectory() as work:
        for scheme in args.schemes:
            found = [summary(cells(family, scheme, plugins, Path(work))) for family, plugins in columns]
            table.add_row(scheme, *found)
            lines.append(f"| {scheme} | {' | '.join(found)} |")
    Console(width=160).print(table)
    if args.markdown:
        args.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")
    sys.exit(any(LOST in line for line in lines))


def summary(by_sm: dict[int, str]) -> str:
    """GPUs with the same in one entry."""
    kinds = dict.fromkeys(by_sm.values())
    if len(kinds) == 1:
        return next(iter(kinds))
    return "; ".join(f"{', '.join(str(sm) for sm in by_sm if by_sm[sm] == kind)}: {kind}" for kind in kinds)


if __name__ == "__main__":
    main()
