"""What the checks on a GPU share: the GPU, the operations launched on it, and what it is measured by."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from llmc.convert.kernels.kernel_sets import Wanted, kernel_sets
from llmc.runtime.plugins.operation import Gpu, Operation

NAMES = {
    torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.int64: "i64", torch.int32: "i32",
    torch.int8: "i8",
}  # fmt: skip
RUNS = 20
BEYOND_L2 = 256 << 20  # bytes, more than any GPU's cache has
SLEEP = 20_000_000  # cycles, some 10 ms


def require_gpu(script: str) -> None:
    if not torch.cuda.is_available():
        print(f"{Path(script).name} needs a CUDA device, and torch finds none here", file=sys.stderr)
        raise SystemExit(4)


def compiled(make: Callable[..., Operation], wanted: Wanted, **scalars: float) -> Operation:
    """The operation with kernels for this GPU."""
    (kernels,) = kernel_sets([wanted], [here().sm], lambda _: None)
    return make(kernels, **scalars)


def here() -> Gpu:
    torch.zeros(1, device="cuda")  # makes the context that kernels are loaded into
    return Gpu.current()


def launcher(operation: Operation, inputs: Sequence[torch.Tensor], output: torch.Tensor) -> Callable[[], None]:
    """What to call. Neither the output nor the workspace is zero before: both are NaN."""
    shapes, gpu = [tuple(x.shape) for x in inputs], here()
    operation.check(shapes, [NAMES[x.dtype] for x in inputs])
    assert all(x.is_contiguous() for x in (*inputs, output))
    if operation.outputs[0].aliased is None:
        output.view(torch.uint8).fill_(0xFF)
    workspace = torch.full((operation.workspace_bytes(shapes),), 0xFF, dtype=torch.uint8, device="cuda")
    given = [x.data_ptr() for x in inputs]

    def launch() -> None:
        stream = torch.cuda.current_stream().cuda_stream
        operation.launch(gpu, shapes, given, [output.data_ptr()], workspace.data_ptr(), stream)

    return launch


def resources(operation: Operation) -> str:
    """Registers of a thread, and bytes that it spilled."""
    (compiled_for,) = operation.kernels.told["sm"].values()
    told: dict[str, Any] = compiled_for["kernels"]
    return ", ".join(f"{name} {each['registers']} + {each['stack_bytes']}" for name, each in told.items())


def milliseconds(call: Callable[[], object]) -> float:
    """A median, the L2 cache cleared before each. The GPU sleeps while the host launches, which takes longer than the
    kernels of one token.
    """
    call()
    other, took = torch.empty(BEYOND_L2, dtype=torch.uint8, device="cuda"), list[float]()
    for _ in range(RUNS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        other.zero_()
        torch.cuda._sleep(SLEEP)
        start.record()
        call()
        end.record()
        end.synchronize()
        took.append(start.elapsed_time(end))
    return statistics.median(took)


def copied_bytes_per_second() -> float:
    """Read and written by a copy of 1 GiB."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2e3 * len(source) / milliseconds(lambda: target.copy_(source))


def multiplied_flops_per_second(size: int = 8192) -> float:
    """Of a product of two square bfloat16 matrices."""
    a, b = (torch.randn(size, size, dtype=torch.bfloat16, device="cuda") for _ in "ab")
    return 2e3 * size**3 / milliseconds(lambda: a @ b)
