#!/usr/bin/env python3
"""What experts cost in an engine, with the plugin and without: 16 to 256 of them.

    python ci/bench/experts.py

One layer with int4 experts (groups of 128) of a small model: time to compile, size, and what the two formulations do.
Without the plugin, steps that decode gather the chosen experts, and wider ones compute all of them. An engine cannot be
asked for its scratch memory without a GPU: "scratch" is the plugin's workspace, or the largest results between the
products as they stand in the lowered graph, for a prompt's step of 512 tokens. "work" is the FLOPs of such a step over
those of the chosen experts, "read" the expert weights that a decoding step for one token reads.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from engine_models import FAMILIES, quantized
from rich.console import Console
from rich.table import Table

from llmc.convert.engines import contents
from llmc.convert.targets import target
from llmc.runtime.plugins import kernel_set
from llmc.runtime.plugins.mixture_of_experts import MixtureOfExpertsPlugin

rtx = target("tensorrt-rtx")
HIDDEN, INNER, TOP_K, TOKENS = 512, 256, 8, 512
EXPERTS = (16, 64, 128, 256)


@dataclass(frozen=True)
class Measured:
    """seconds: of the whole target, kernels among them. Bytes; weights: of the engine without its program."""

    experts: int
    plugin: bool
    seconds: float
    engine: int
    weights: int
    scratch: int
    work: float
    read: int


def measure(experts: int, plugin: bool, work: Path) -> Measured:
    config = FAMILIES["deepseek_v3"] | {
        "hidden_size": HIDDEN, "moe_intermediate_size": INNER,
        "n_routed_experts": experts, "num_experts_per_tok": TOP_K,
        "num_hidden_layers": 1, "first_k_dense_replace": 0, "num_nextn_predict_layers": 0, "n_shared_experts": None,
    }  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        checkpoint = quantized(config, {"experts": "int4-g128"}, work)
    start = time.perf_counter()
    rtx.build(checkpoint, rtx.Options(sm=[89], context=1024, plugins=plugin), checkpoint.path, lambda *_: None)
    seconds = time.perf_counter() - start
    said = json.loads((checkpoint.path / "engines/rtx-sm89.json").read_text())
    expert = 3 * HIDDEN * INNER
    if plugin:
        sets = kernel_set.read(checkpoint.path / "engines" / said["kernels"])
        (kernels,) = (each for each in sets.values() if each.operation == "MixtureOfExperts")
        scratch = MixtureOfExpertsPlugin(kernels).workspace_bytes([(TOKENS, HIDDEN)])
    else:
        scratch = 2 * TOKENS * experts * (2 * INNER + INNER)  # gate and up side by side, and their product; bfloat16
    return Measured(
        experts, plugin, seconds, said["bytes"], said["bytes"] - said["text_bytes"], scratch,
        1.0 if plugin else experts / TOP_K, min(TOP_K, experts) * (expert // 2 + 2 * expert // 128),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    contents.MOST_DENSE_EXPERTS = max(EXPERTS)  # for the comparison's sake
    table = Table(
        "experts", "plugin", "compiled in s", "engine MB", "of it weights", "scratch MB", "work", "read MB",
        title=f"hidden {HIDDEN}, inner {INNER}, top {TOP_K}; prompt's steps of {TOKENS} tokens",
    )  # fmt: skip
    rows = []
    with tempfile.TemporaryDirectory() as work:
        for experts in EXPERTS:
            for plugin in (True, False):
                found = measure(experts, plugin, Path(work))
                rows.append(found)
                sizes = (found.engine, found.weights, found.scratch)
                table.add_row(
                    str(experts), "yes" if plugin else "no", f"{found.seconds:.1f}",
                    *(f"{size / 1e6:.1f}" for size in sizes), f"{found.work:.3g}", f"{found.read / 1e6:.2f}",
                )  # fmt: skip
    Console(width=120).print(table)
    if args.json:
        args.json.write_text(json.dumps([asdict(each) for each in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
