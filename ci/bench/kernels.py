#!/usr/bin/env python3
"""What the plugins' kernels could reach, from their machine code: no GPU is needed, and none is measured.

    python ci/bench/kernels.py                                   # DeepSeek-R1, Qwen3-30B-A3B and GLM-4.7-Flash
    python ci/bench/kernels.py --gpus H100 B200 --only latent    # cases whose name has a word
    python ci/bench/kernels.py --markdown table.md --json table.json

Each kernel is compiled at the model's sizes and disassembled. The instructions of its innermost loop with a matrix
product are what a warp does for one step. A multiprocessor cannot take less time for a step than the slowest of its
parts: issue slots, integer instructions, conversions, exponentials, tensor cores, shared memory; nor than its share of
the memory's bandwidth allows; nor than loads in flight take to arrive (Little's law). The estimate is the memory's
time, or for prompts that of the tensor cores for the work that is needed, over the longest of these.

Programs of one multiprocessor overlap; where there is only one, its products and its other instructions are added up.
What the model does not see: waiting at barriers, the beginning and end of a program, launches, misses in L2. So it is
an upper bound, which tells what cannot be right. `--all` shows every part.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from llmc.convert.kernels.ahead_of_time import compile_kernel
from llmc.convert.kernels.expanded_latent_attention_tiles import BLOCK, columns_for
from llmc.convert.kernels.expanded_latent_attention_tiles import tiles_for as tiles_of_prompts
from llmc.convert.kernels.grouped_query_attention_tiles import tiles_for as tiles_of_groups
from llmc.convert.kernels.kernel_sets import KernelRequest
from llmc.runtime.plugins.expanded_latent_attention import ExpandedShape
from llmc.runtime.plugins.grouped_query_attention import GroupedQueryShape
from llmc.runtime.plugins.latent_attention import LatentShape
from llmc.runtime.plugins.mixture_of_experts import CODES, HEIGHTS, STEP, ExpertsShape, ExpertWeights

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from support.sass import innermost_loop

BEST = 0.92  # of its bandwidth that a copy reaches
LATENCY = 700e-9  # seconds that a load from memory takes under load
SUSTAINED = 0.65  # of the issue slots that well-scheduled kernels fill


@dataclass(frozen=True)
class GPU:
    """As its maker describes it: multiprocessors, boost clock in Hz, bytes a second, dense bfloat16 FLOPs a second with
    float32 sums; of a multiprocessor bytes of shared memory, warps and blocks. And, as others measured it, the bytes
    that one gets from the L2 cache in a clock while all do.
    """

    name: str
    sm: int
    multiprocessors: int
    clock: float
    bandwidth: float
    flops: float
    shared: int
    warps: int
    blocks: int
    cached: float

    @property
    def bytes_per_clock(self) -> float:
        return self.bandwidth / self.multiprocessors / self.clock

    @property
    def flops_per_clock(self) -> float:
        return self.flops / self.multiprocessors / self.clock


# NVIDIA's data sheets and architecture papers (A100 2020, GA102 2020, Ada 2022, H100 2022, Blackwell 2024/2025); what a
# multiprocessor holds: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
GPUS = (
    GPU("A100", 80, 108, 1.41e9, 2.04e12, 312e12, 164 << 10, 64, 32, 32),
    GPU("A40", 86, 84, 1.74e9, 0.696e12, 150e12, 100 << 10, 48, 16, 14),
    GPU("L40", 89, 142, 2.49e9, 0.864e12, 181e12, 100 << 10, 48, 24, 14),
    GPU("H100", 90, 132, 1.755e9, 3.35e12, 989e12, 228 << 10, 64, 32, 28),
    GPU("H200", 90, 132, 1.755e9, 4.8e12, 989e12, 228 << 10, 64, 32, 28),
    GPU("B200", 100, 148, 1.85e9, 8e12, 2250e12, 228 << 10, 64, 32, 28),
    GPU("B300", 103, 148, 1.92e9, 8e12, 2250e12, 228 << 10, 64, 32, 28),
    GPU("RTX 5090", 120, 170, 2.41e9, 1.79e12, 210e12, 100 << 10, 48, 24, 14),
    GPU("GB10", 121, 48, 2.42e9, 0.273e12, 62e12, 100 << 10, 48, 24, 14),
)
SHOWN = ("A100", "A40", "L40", "H100")


@dataclass(frozen=True)
class Case:
    """A kernel at a model's sizes, and what one program of it does in a step.

    Attributes:
        bytes: that come from memory, those that programs share counted once
        loaded: bytes that it loads, which are in flight for as many steps as there are stages less one
        flops: that are needed, which may be fewer than are done
    """

    name: str
    request: KernelRequest
    kernel: str
    bytes: float
    loaded: float
    flops: float
    decodes: bool = True


INT4, FP8, PLAIN = ExpertWeights("int4", 128, 1, "bf16"), ExpertWeights("fp8", 128, 128, "fp32"), ExpertWeights("plain")
EXPERTS = {
    "R1": ExpertsShape(256, 8, 7168, 2048, "bf16", "bf16", PLAIN, PLAIN),
    "Qwen3-30B-A3B": ExpertsShape(128, 8, 2048, 768, "bf16", "bf16", PLAIN, PLAIN),
    "GLM-4.7-Flash": ExpertsShape(64, 4, 2048, 1536, "bf16", "bf16", PLAIN, PLAIN),
}
HEADS = {"R1": 128, "GLM-4.7-Flash": 20}
EXPANDED = {"R1": (128, 64, 128), "GLM-4.7-Flash": (192, 64, 256)}  # channels of keys, rotated ones and values
GROUPS = {"Qwen3-30B-A3B": (32, 4, 128), "Llama-3.1-8B": (32, 8, 128)}


def expert_cases(sm: int) -> Iterator[Case]:
    """Of one token and of a prompt."""
    for model, plain in EXPERTS.items():
        for form in (INT4, FP8, PLAIN):
            request = KernelRequest("MixtureOfExperts", replace(plain, gate_up=form, down=form))
            layout = request.module().layout_for(request.shape, sm)
            step = 64 if form == PLAIN else STEP
            bits = 16 if form == PLAIN else 32 // CODES[form.form]
            for rows in (HEIGHTS[0], HEIGHTS[-1]):
                for kernel, of in (("gate_up", layout.gate_up), ("down", layout.down)):
                    weights = of[str(rows)] * step * (2 if kernel == "gate_up" else 1)
                    scales = 0 if form == PLAIN else weights / form.group / form.rows * (2 if form == INT4 else 4)
                    read, x = weights * bits / 8 + scales, 2 * rows * step
                    name = f"experts {model} {form.form} {kernel} {'decode' if rows == HEIGHTS[0] else 'prompt'}"
                    decodes = rows == HEIGHTS[0]
                    yield Case(name, request, f"{kernel}_{rows}", read, read + x, 2 * weights * rows, decodes)


def latent_cases(sm: int) -> Iterator[Case]:
    """Of one token for each of many sequences."""
    for model, heads in HEADS.items():
        for float8 in (False, True):
            shape = LatentShape(heads, 512, 64, "bf16", float8)
            request = KernelRequest("LatentAttention", shape)
            layout = request.module().layout_for(shape, sm)
            read = layout.entries * shape.channels * (1 if float8 else 2)
            programs = -(-heads // layout.rows)
            flops = 2 * heads / programs * layout.entries * (shape.channels + shape.rank)
            name = f"latent attention {model} {'FP8' if float8 else 'bf16'} decode"
            yield Case(name, request, "attend", read / programs, read, flops)


def prompt_cases(sm: int) -> Iterator[Case]:
    """Of 512 tokens of a prompt, absorbed and expanded. What is needed is what the expanded form does, either way."""
    tokens = 512
    for model, (nope, rope, values) in EXPANDED.items():
        for float8 in (False, True):
            name = f"latent attention {model} {'FP8' if float8 else 'bf16'} prompt"
            absorbed = LatentShape(HEADS[model], 512, rope, "bf16", float8)
            request = KernelRequest("LatentAttention", absorbed)
            layout = request.module().layout_for(absorbed, sm)
            read = layout.entries * absorbed.channels * (1 if float8 else 2)
            flops = 2 * layout.rows * layout.entries * (nope + rope + values)
            yield Case(
                f"{name} absorbed", request, "attend", read * layout.rows / tokens / HEADS[model], read, flops, False
            )

            shape = ExpandedShape(HEADS[model], 512, nope, rope, values, "bf16", float8)
            request = KernelRequest("ExpandedLatentAttention", shape)
            tiles = tiles_of_prompts(shape, sm)
            read = tiles.entries * (nope + values) * 2
            flops = 2 * tiles.tokens * tiles.entries * (nope + rope + values)
            loaded = read + tiles.entries * rope * (1 if float8 else 2)
            yield Case(f"{name} expanded", request, "attend", read * tiles.tokens / tokens, loaded, flops, False)

            cached, columns = 64 * (1 if float8 else 2), min(map(columns_for, (nope, values)))  # a step of a block
            loaded = BLOCK * cached + columns * 64 * 2
            flops = 2 * BLOCK * columns * 64
            written = BLOCK * columns * 2 * 64 / 512
            yield Case(f"{name} expanding", request, "expand", written, loaded, flops, False)


def grouped_cases(sm: int) -> Iterator[Case]:
    """Of one token for each sequence."""
    for model, (heads, groups, channels) in GROUPS.items():
        shape = GroupedQueryShape(heads, groups, channels, channels, "bf16")
        entries = tiles_of_groups(shape, sm)["few"].entries
        read = 2 * entries * 2 * channels
        flops = 2 * shape.heads_per_group * entries * 2 * channels
        request = KernelRequest("GroupedQueryAttention", shape)
        yield Case(f"grouped attention {model} decode", request, "split_few", read, read, flops)


CASES = (expert_cases, latent_cases, prompt_cases, grouped_cases)


@dataclass(frozen=True)
class Compiled:
    """What the compiler made of a case on one SM: names of the loop's instructions, and what a program takes."""

    loop: tuple[str, ...]
    warps: int
    stages: int
    registers: int
    spilled: int
    shared: int

    def count(self, pattern: str) -> int:
        """Instructions of a warp whose name begins so."""
        return sum(bool(re.match(pattern, name)) for name in self.loop)

    @cached_property
    def tensor_flops(self) -> float:
        """Of all warps, by the shapes in the instructions' names."""
        found = 0
        for name in self.loop:
            if shape := re.match(r"HMMA\.(\d+)(8)(16|8|4)\.", name):
                found += 2 * int(shape[1]) * int(shape[2]) * int(shape[3])
            elif shape := re.match(r"HGMMA\.(\d+)x(\d+)x(\d+)", name):  # four warps together
                found += 2 * int(shape[1]) * int(shape[2]) * int(shape[3]) // 4
        return found * self.warps

    @property
    def shared_bytes(self) -> float:
        """That all warps read from shared memory and write to it."""
        found = 0
        for name in self.loop:
            if re.match(r"LDSM|STSM", name):
                found += 128 * int((re.search(r"\.(\d)(?:\.|$)", name) or [0, 1])[1])
            elif re.match(r"LDS|STS", name):
                width = re.search(r"\.(64|128|U8|S8|U16|S16)", name)
                found += (
                    {"64": 256, "128": 512, "U8": 32, "S8": 32, "U16": 64, "S16": 64}.get(width[1], 0) if width else 128
                )
        return found * self.warps

    def blocks(self, gpu: GPU) -> int:
        """Programs that a multiprocessor holds at once."""
        registers = 65536 // (-(-self.registers // 8) * 8 * 32 * self.warps)
        shared = gpu.shared // (self.shared + 1024)
        return min(registers, shared, gpu.warps // self.warps, gpu.blocks)


@dataclass(frozen=True)
class Estimate:
    """share: of the memory's bandwidth, or for prompts of the tensor cores' speed. parts: clocks of a multiprocessor
    for one step of one program.
    """

    share: float
    limit: str
    parts: dict[str, float]


def estimate(case: Case, made: Compiled, gpu: GPU) -> Estimate:
    warps = made.warps
    # Warp instructions a clock: four schedulers; integers at half, conversions and special functions at an eighth.
    done = case.flops if made.count("UTC") else max(case.flops, made.tensor_flops)
    old = gpu.sm // 10 in (9, 10) and made.count("HMMA")  # measured by others: six tenths, by the older instructions
    in_flight = made.blocks(gpu) * max(1, made.stages - 1) * case.loaded
    parts = {
        "memory": case.bytes / gpu.bytes_per_clock / BEST,
        "L2": case.loaded / gpu.cached,
        "issue": len(made.loop) * warps / 4 / SUSTAINED,
        "integers": made.count(r"LOP3|PRMT|SHF|IADD|IMNMX|ISETP|SEL|LEA|VIADD|I2F\b") * warps / 2,
        "conversions": made.count(r"F2F(?!P)|F2I|I2F") * warps / 0.5,
        "exponentials": made.count("MUFU") * warps / 0.5,
        "tensor cores": done / gpu.flops_per_clock / (0.62 if old else 1),
        "shared memory": made.shared_bytes / 128,
        # All that is in flight arrives once in a latency.
        "latency": case.loaded * LATENCY * gpu.clock / in_flight if case.decodes else 0.0,
    }
    if made.blocks(gpu) == 1:
        parts["one program"] = parts["tensor cores"] + parts["issue"]
    limit = max(parts, key=parts.__getitem__)
    needed = case.bytes / gpu.bytes_per_clock if case.decodes else case.flops / gpu.flops_per_clock
    return Estimate(needed / parts[limit], limit, parts)


def compiled(task: tuple[Case, int]) -> Compiled:
    case, sm = task
    source = case.request.module().sources(case.request.shape, sm)[case.kernel]
    made = compile_kernel(source, sm)
    with tempfile.TemporaryDirectory() as folder:
        loop = innermost_loop(made.cubin, Path(folder))
    told = made.description
    return Compiled(tuple(loop), source.warps, source.stages, told.registers, told.stack_bytes, told.shared_bytes)


def row(case: Case, made: Compiled, gpu: GPU, found: Estimate) -> dict[str, Any]:
    kinds = Counter(re.split(r"[.\d]", name)[0] for name in made.loop)
    return {
        "case": case.name,
        "GPU": gpu.name,
        "SM": gpu.sm,
        "warps": made.warps,
        "stages": made.stages,
        "registers": made.registers,
        "spilled": made.spilled,
        "shared": made.shared,
        "programs": made.blocks(gpu),
        "instructions": len(made.loop),
        "per byte": round(len(made.loop) * made.warps / case.bytes, 3),
        "products": sum(kinds[name] for name in ("HMMA", "HGMMA", "UTCHMMA")),
        "LDS": kinds["LDS"] + kinds["LDSM"],
        "STS": kinds["STS"] + kinds["STSM"],
        "BAR": kinds["BAR"],
        "F2F": made.count(r"F2F(?!P)"),
        "done/needed": round(made.tensor_flops / case.flops, 2),
        "estimate": f"{found.share:.0%}",
        "limit": found.limit,
        "parts": {name: round(clocks, 1) for name, clocks in found.parts.items()},
    }


def rows(gpus: Sequence[GPU], only: Sequence[str]) -> list[dict[str, Any]]:
    tasks = [
        (case, gpu)
        for gpu in gpus
        for cases in CASES
        for case in cases(gpu.sm)
        if all(word in case.name for word in only)
    ]
    distinct = list(dict.fromkeys((case, gpu.sm) for case, gpu in tasks))
    with ProcessPoolExecutor() as pool:
        made = dict(zip(distinct, pool.map(compiled, distinct), strict=True))
    return [row(case, made[case, gpu.sm], gpu, estimate(case, made[case, gpu.sm], gpu)) for case, gpu in tasks]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [gpu.name for gpu in GPUS]
    parser.add_argument("--gpus", nargs="+", choices=known, default=SHOWN, help=f"by default {', '.join(SHOWN)}")
    parser.add_argument("--only", nargs="+", default=[], help="words that the name of a case must have")
    parser.add_argument("--all", action="store_true", help="every part of the estimate, in clocks")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--markdown", type=Path, help="write the table there")
    arguments = parser.parse_args()
    found = rows([gpu for gpu in GPUS if gpu.name in arguments.gpus], arguments.only)
    columns = [name for name in (found[0] if found else {}) if name != "parts" or arguments.all]
    cells = [[_shown(each[name]) for name in columns] for each in found]
    table = Table(*columns, title="upper bounds, from machine code: of bandwidth, for prompts of the tensor cores")
    for each in cells:
        table.add_row(*each)
    Console(width=240).print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if arguments.markdown:
        lines = [columns, ["---"] * len(columns), *cells]
        arguments.markdown.write_text("".join(f"| {' | '.join(line)} |\n" for line in lines), encoding="utf-8")


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {number}" for name, number in value.items())
    return str(value)


if __name__ == "__main__":
    main()
