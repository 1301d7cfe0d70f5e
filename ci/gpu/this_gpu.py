"""What the checks of this folder share: operations on torch tensors, times, and the rates they are held against."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from llmc.convert.kernels.kernel_sets import KernelRequest, kernel_sets
from llmc.runtime.plugins.kernel_set import KernelSet
from llmc.runtime.plugins.operation import Gpu, Operation
from llmc.runtime.plugins.prepared import PreparedLaunch

DEVICE = "cuda"
NO_GPU = 4  # exit code; that of llmc.errors.MachineError
KEPT = "LLMC_GPU_TABLES"  # environment variable: the file that tables are kept in, too, each as a line of JSON
TYPES = {
    "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32,
    "i8": torch.int8, "i32": torch.int32, "i64": torch.int64,
}  # fmt: skip
console = Console(width=140)


def require_gpu(script: str) -> None:
    if not torch.cuda.is_available():
        print(f"ci/gpu/{script} needs a CUDA device, and torch finds none here", file=sys.stderr)
        raise SystemExit(NO_GPU)


def judged(difference: float, most: float) -> str:
    """As a cell shows it."""
    return f"{difference:.2e}" + ("" if difference <= most else " WRONG")


def difference_of_rows(found: torch.Tensor, want: torch.Tensor) -> float:
    """The largest of all rows, each relative to its own norm."""
    rows = (found.double() - want).norm(dim=1) / want.norm(dim=1)
    return torch.nan_to_num(rows, nan=torch.inf).max().item()


def show(table: Table) -> None:
    """Prints a table, and keeps it for `all.py`."""
    console.print(table)
    if file := os.environ.get(KEPT):
        kept = {
            "title": str(table.title or ""),
            "caption": str(table.caption or ""),
            "columns": [str(column.header) for column in table.columns],
            "rows": [list(map(str, row)) for row in zip(*(column.cells for column in table.columns), strict=True)],
        }
        with Path(file).open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(kept) + "\n")


def current() -> Gpu:
    properties = torch.cuda.get_device_properties(DEVICE)
    return Gpu(10 * properties.major + properties.minor, properties.multi_processor_count, torch.cuda.current_device())


def compiled(wanted: Sequence[KernelRequest]) -> list[KernelSet]:
    """For this GPU alone, side by side."""
    with console.status("compiling the kernels"):
        return kernel_sets(wanted, [current().sm], lambda _: None)


def resources(kernels: KernelSet) -> str:
    """Registers of a thread and bytes that it spills, by kernel."""
    (each,) = kernels.told["sm"].values()
    return ", ".join(f"{name} {it['registers']}/{it['stack_bytes']}" for name, it in each["kernels"].items())


def on_tensors(operation: Operation, *inputs: torch.Tensor) -> tuple[Callable[[], None], torch.Tensor]:
    """What launches it on torch's current stream, as an engine does, and its only output.

    Output and workspace are 0xFF before, NaN in every float type: what was not written is no number that looks right.
    """
    gpu, shapes = current(), [tuple(x.shape) for x in inputs]
    names = {dtype: name for name, dtype in TYPES.items()}
    operation.check(shapes, [names[x.dtype] for x in inputs])
    assert all(x.is_contiguous() for x in inputs)
    (told,) = operation.outputs
    if told.aliased is None:
        shape = [d if isinstance(d, int) else shapes[d[0]][d[1]] for d in told.shape]
        output = _undefined(math.prod(shape) * TYPES[told.type].itemsize).view(TYPES[told.type]).view(shape)
    else:
        output = inputs[told.aliased]
    workspace = _undefined(operation.workspace_bytes(shapes))
    prepared = PreparedLaunch(operation, gpu, shapes)

    def launch() -> None:
        tensors = (*inputs, output, workspace)  # here, so that they live as long as this function
        prepared(tuple(x.data_ptr() for x in tensors), torch.cuda.current_stream().cuda_stream)

    return launch, output


def _undefined(size: int) -> torch.Tensor:
    return torch.full((size,), 0xFF, dtype=torch.uint8, device=DEVICE)


def captured(call: Callable[[], object]) -> Callable[[], object]:
    """The same as a CUDA graph, as engines run their steps, so that no time of Python's is measured; what waits for the
    GPU in between cannot be one and stays as it is."""
    call()  # loads what is loaded lazily
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        return call
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def milliseconds(call: Callable[[], object]) -> float:
    """The median of many runs, the L2 cache cleared before each."""
    from triton.testing import do_bench

    return do_bench(captured(call), return_mode="median")


def copied_bytes_per_second() -> float:
    """Read and written by a copy of 1 GiB."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    return 2e3 * len(source) / milliseconds(lambda: target.copy_(source))


def multiplied_flops_per_second(size: int = 8192) -> float:
    """Of torch's product of two square matrices in bfloat16."""
    a, b = torch.randn(2, size, size, device=DEVICE, dtype=torch.bfloat16)
    product = torch.empty_like(a)
    return 2e3 * size**3 / milliseconds(lambda: torch.mm(a, b, out=product))


def title(*about: str) -> str:
    """Of a table: where it was measured, and what about it."""
    return ", ".join([torch.cuda.get_device_name(), f"torch {torch.__version__}", *about])
