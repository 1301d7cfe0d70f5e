#!/usr/bin/env python3
"""What launching the plugins' kernels costs in Python: microseconds of each call that TensorRT makes. Needs no GPU.

    python ci/bench/enqueue.py

The driver is stood in for by a library whose functions do nothing, which a C compiler makes; all else is real: the
plugins, cuda-python, TensorRT-RTX's descriptions of tensors, kernels compiled for SM 90 at the sizes of DeepSeek-R1.
"as told" is what a plugin's `launch` takes, "prepared" what `enqueue` takes for shapes that it has seen, with other
addresses in every call, and "same" with those of the call before, as when one text is decoded. Times are those that the
process ran. Without CUDA graphs a step takes at least as long.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from llmc.convert.kernels.kernel_sets import KernelRequest, kernel_sets
from llmc.runtime.plugins import tensorrt as plugins
from llmc.runtime.plugins.append_float8 import EntryShape
from llmc.runtime.plugins.latent_attention import LatentShape
from llmc.runtime.plugins.linear import LinearShape
from llmc.runtime.plugins.mixture_of_experts import ExpertsShape, ExpertWeights
from llmc.runtime.plugins.operation import Gpu
from llmc.runtime.plugins.phased_latent_attention import PhasedShape

SM, MULTIPROCESSORS, CAPACITY = 90, 132, 32_768
KEYS = ("told", "prepared", "same")
LAYERS, SPARSE = 61, 58  # of DeepSeek-R1, and those with experts
DRIVER = r"""
#include <string.h>
static int nothing(void) { return 0; }
static int load(void **module) { *module = (void *)16; return 0; }
static int find(void **function) { *function = (void *)32; return 0; }
int cuGetProcAddress_v2(const char *name, void **function, int version, unsigned long long flags, void *status) {
    if (!strcmp(name, "cuModuleLoadData")) *function = (void *)load;
    else if (!strcmp(name, "cuModuleGetFunction")) *function = (void *)find;
    else *function = (void *)nothing;
    return 0;
}
int cuGetProcAddress(const char *name, void **function, int version, unsigned long long flags) {
    return cuGetProcAddress_v2(name, function, version, flags, 0);
}
"""
INT4, FP8 = ExpertWeights("int4", 128, 1, "bf16"), ExpertWeights("fp8", 128, 128, "fp32")
REQUESTS = {
    "LatentAttention": KernelRequest("LatentAttention", LatentShape(128, 512, 64, "bf16")),
    "PhasedLatentAttention": KernelRequest("PhasedLatentAttention", PhasedShape(128, 512, 128, 64, 128, "bf16")),
    "AppendFloat8": KernelRequest("AppendFloat8", EntryShape(576, "bf16")),
    "MixtureOfExperts": KernelRequest("MixtureOfExperts", ExpertsShape(256, 8, 7168, 2048, "bf16", "fp32", INT4, INT4)),
    "Linear": KernelRequest("Linear", LinearShape(16384, 7168, "bf16", FP8)),
}
TIMES = dict.fromkeys(REQUESTS, LAYERS) | {"MixtureOfExperts": SPARSE, "Linear": 4 * LAYERS}
# Of the axis 2 of such an input; others: 1. A token is absorbed.
SIZES = {"LatentAttention": {1: CAPACITY}, "PhasedLatentAttention": {1: CAPACITY}, "AppendFloat8": {0: CAPACITY}}


def shapes_of(operation: Any) -> list[tuple[int, ...]]:
    """Of the inputs, for one token."""
    found = []
    for number, each in enumerate(operation.inputs):
        sizes = [1 if size is None else size for size in each.shape]
        if capacity := SIZES.get(operation.name, {}).get(number):
            sizes[2] = capacity
        found.append(tuple(sizes))
    return found


def microseconds(call: Callable[[int], None], calls: int, rounds: int) -> float:
    """The median of the rounds; `call` is given a number of its own each time."""
    call(0)
    found = []
    for _ in range(rounds):
        start = time.thread_time()
        for number in range(calls):
            call(number)
        found.append((time.thread_time() - start) / calls * 1e6)
    return median(found)


def measure(calls: int, rounds: int) -> list[dict[str, Any]]:
    import tensorrt_rtx as trt

    sets = dict(zip(REQUESTS, kernel_sets(list(REQUESTS.values()), [SM], lambda _: None), strict=True))
    plugin_class, gpu = plugins._plugin_class(trt), Gpu(SM, MULTIPROCESSORS)
    return [timed(trt, plugin_class, gpu, name, kernels, calls, rounds) for name, kernels in sets.items()]


def timed(trt: Any, plugin_class: Any, gpu: Gpu, name: str, kernels: Any, calls: int, rounds: int) -> dict[str, Any]:
    kind = plugins.operations.get(name)
    operation = kind(kernels, **dict.fromkeys(kind.scalars, 1.0))
    plugin, shapes = plugin_class(operation), shapes_of(operation)
    plugin.gpu = gpu
    described = [described_as(trt, shape) for shape in shapes]

    def addresses(number: int) -> tuple[list[int], list[int], int]:
        given = [4096 * (16 * number + i + 1) for i in range(len(shapes))]
        outputs = [each.aliased for each in operation.outputs]
        return given, [given[i] if i is not None else 1 << 40 for i in outputs], 1 << 41

    def told(number: int) -> None:
        shapes = [tuple(each.dims) for each in described]
        operation.launch(gpu, shapes, *addresses(number), 7)

    def enqueue(number: int) -> None:
        plugin.enqueue(described, [], *addresses(number), 7)

    def again(number: int) -> None:
        addresses(number)
        plugin.enqueue(described, [], *same, 7)

    same = addresses(0)
    empty = microseconds(lambda number: addresses(number) and None, calls, rounds)
    found = {
        key: microseconds(call, calls, rounds) - empty for key, call in zip(KEYS, (told, enqueue, again), strict=True)
    }
    (prepared,) = plugin._prepared.values()
    return {"plugin": name, "launches": len(prepared._launches)} | found


def described_as(trt: Any, shape: Sequence[int]) -> Any:
    made = trt.PluginTensorDesc()
    made.dims = trt.Dims(shape)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.calls, given.rounds)))
        return
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "driver.c"), Path(folder, "libcuda.so.1")
        source.write_text(DRIVER)
        subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-w", "-o", library, source], check=True)
        command = [sys.executable, __file__, "--measure", f"--calls={given.calls}", f"--rounds={given.rounds}"]
        paths = os.pathsep.join(filter(None, [folder, os.environ.get("LD_LIBRARY_PATH", "")]))
        done = subprocess.run(command, env=os.environ | {"LD_LIBRARY_PATH": paths}, stdout=subprocess.PIPE, check=True)
    table = Table("plugin", "kernels", "as told, µs", "prepared, µs", "same, µs", "a token of R1, ms")
    for each in json.loads(done.stdout):
        a_token = " → ".join(f"{TIMES[each['plugin']] * each[key] / 1e3:.2f}" for key in ("told", "same"))
        table.add_row(each["plugin"], str(each["launches"]), *(f"{each[key]:.1f}" for key in KEYS), a_token)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
