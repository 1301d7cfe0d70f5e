#!/usr/bin/env python3
"""Build a checkpoint that is much larger than memory may be, and one of half its layers, under a limit.

    python ci/bench/memory.py                      # 13 GB in 3 GiB: needs 45 GB of disk and three quarters of an hour
    python ci/bench/memory.py --layers 2 4         # a smaller proof of the same

The operating system enforces the limit: `RLIMIT_DATA`, which counts all private writable memory, and a control group
as well where one can be made, which also counts the page cache. Prints peaks and what doubling the layers adds.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

from pydantic import ByteSize, TypeAdapter
from rich.console import Console
from rich.table import Table
from synthesize import CONFIGS, synthesize

RECIPE = """
model: {model}
calibration: {{samples: 8, length: 512}}
quantize: [{{match: experts, scheme: int4-g128}}]
targets: [{{onnx: {{}}}}]
check: {{tokens: 2048, length: 512}}
"""
GROUP = Path("/sys/fs/cgroup/memory/llmc-bench")  # version 1
if Path("/sys/fs/cgroup/cgroup.controllers").exists():
    GROUP = Path("/sys/fs/cgroup/llmc-bench")


def limited(limit: int) -> None:
    """Runs in the child before the build."""
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    if GROUP.exists():
        (GROUP / "cgroup.procs").write_text(str(os.getpid()))


def make_group(limit: int) -> bool:
    """Whether this machine lets us make a control group of that size."""
    try:
        GROUP.mkdir(exist_ok=True)
        file = GROUP / ("memory.limit_in_bytes" if GROUP.parent.name == "memory" else "memory.max")
        if file.exists():  # made by the kernel: else the folder is just a folder
            file.write_text(str(limit))
            return True
        GROUP.rmdir()
    except OSError:
        pass
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--limit", type=TypeAdapter(ByteSize).validate_python, default="3GiB", metavar="SIZE")
    parser.add_argument("--work", type=Path, default=Path("build/bench"))
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    limit = int(args.limit)
    grouped = make_group(limit)
    by = "RLIMIT_DATA and a control group" if grouped else "RLIMIT_DATA"
    table = Table(
        "layers", "checkpoint GB", "artifact GB", "peak MB", "minutes", title=f"{limit / 2**30:g} GiB by {by}"
    )
    peaks = []
    for layers in args.layers:
        source, output = args.work / f"large-{layers}", args.work / f"large-{layers}-built"
        if not (source / "config.json").exists():
            synthesize(CONFIGS["large"] | {"num_hidden_layers": layers}, source)
        shutil.rmtree(output, ignore_errors=True)
        recipe = args.work / f"large-{layers}.yaml"
        recipe.write_text(RECIPE.format(model=source.resolve()))
        command = [
            sys.executable,
            "-m",
            "llmc.cli",
            "build",
            recipe,
            "--output",
            output,
            "--memory",
            f"{limit}B",
            "--fresh",
        ]
        start = time.monotonic()
        child = subprocess.Popen(command, preexec_fn=lambda: limited(limit))
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        minutes = (time.monotonic() - start) / 60
        if child.returncode:
            sys.exit(f"the build of {layers} layers failed with {child.returncode}")
        peaks.append(usage.ru_maxrss * 1024)
        sizes = [sum(f.stat().st_size for f in place.rglob("*") if f.is_file()) / 1e9 for place in (source, output)]
        table.add_row(str(layers), *(f"{size:.1f}" for size in sizes), f"{peaks[-1] / 1e6:.0f}", f"{minutes:.1f}")
        shutil.rmtree(output)
    if grouped:
        GROUP.rmdir()
    Console().print(table)
    if len(peaks) > 1:
        Console().print(
            f"{args.layers[-1]} layers instead of {args.layers[0]}: {peaks[-1] / peaks[0] - 1:+.1%} of peak"
        )


if __name__ == "__main__":
    main()
