"""Operations on the CPU: their launches go to Triton's interpreter, which TRITON_INTERPRET=1 switches on.

What the kernels do not write is not left to chance: outputs and workspace are 0xFF, NaN in every float type.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from llmc.convert.kernels.ahead_of_time import KernelSource
from llmc.convert.kernels.kernel_sets import CUBINS, CompiledKernels, KernelRequest, kernel_set
from llmc.runtime.plugins.kernel_set import KernelSet
from llmc.runtime.plugins.operation import Gpu, Operation

DTYPES = {
    "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "i64": torch.int64, "i32": torch.int32,
    "i8": torch.int8, "u8": torch.uint8,
}  # fmt: skip

# Of those that are compiled for: SM 103 and 121 take the kernels of 100 and 120, as test_kernel_sets.py says.
GENERATIONS = tuple(sm for sm in CUBINS if sm not in (103, 121))


class InterpretedKernels(KernelSet):
    def __init__(self, wanted: KernelRequest, sm: int) -> None:
        super().__init__(layouts_alone(wanted, [sm]).told, lambda _: b"")
        self.sources: dict[str, KernelSource] = wanted.module().sources(wanted.shape, sm)
        self.memory: list[torch.Tensor] = []
        self.launched: list[str] = []

    def kernel(self, name: str, sm: int, device: int = 0) -> Any:
        return Interpreted(self, name)

    def at(self, address: int, kind: str) -> torch.Tensor:
        """What lies behind an address, to the end of the tensor that it is in."""
        for tensor in self.memory:
            offset, dtype = address - tensor.data_ptr(), DTYPES[kind]
            if 0 <= offset < tensor.nbytes:
                rest = tensor.view(-1).view(torch.uint8)[offset:]
                return rest[: rest.numel() // dtype.itemsize * dtype.itemsize].view(dtype)
        raise AssertionError(f"{address:#x} is in no tensor")


class Interpreted:
    def __init__(self, kernels: InterpretedKernels, name: str) -> None:
        self.kernels, self.name = kernels, name

    def launch(self, grid: tuple[int, int, int], stream: int, **values: float) -> None:
        source = self.kernels.sources[self.name]
        wanted = [name for name in source.kernel.arg_names if name not in source.constants]
        assert set(wanted) == set(values), f"{self.name} takes {wanted}"
        given: dict[str, Any] = dict(values)
        for name in wanted:
            if source.types[name].startswith("*"):
                assert values[name] % 16 == 0, name
                given[name] = self.kernels.at(int(values[name]), source.types[name][1:])
        self.kernels.launched.append(self.name)
        source.kernel[grid](**given, **source.constants)


def run(
    operation: Callable[..., Operation],
    wanted: KernelRequest,
    inputs: Sequence[torch.Tensor],
    output_shape: Sequence[int],
    gpu: Gpu,
    **scalars: float,
) -> tuple[torch.Tensor, list[str]]:
    """The output, and the names of the kernels that made it."""
    (output,), launched = run_all(operation, wanted, inputs, [output_shape], gpu, **scalars)
    return output, launched


def run_all(
    operation: Callable[..., Operation],
    wanted: KernelRequest,
    inputs: Sequence[torch.Tensor],
    output_shapes: Sequence[Sequence[int]],
    gpu: Gpu,
    **scalars: float,
) -> tuple[list[torch.Tensor], list[str]]:
    """All outputs, and the names of the kernels that made them."""
    kernels = InterpretedKernels(wanted, gpu.sm)
    made = operation(kernels, **scalars)
    names = {dtype: name for name, dtype in DTYPES.items()}
    shapes = [tuple(x.shape) for x in inputs]
    made.check(shapes, [names[x.dtype] for x in inputs])
    outputs = []
    for spec, shape in zip(made.outputs, output_shapes, strict=True):
        dtype = DTYPES[spec.type]
        unwritten = torch.full((int(np.prod(shape)) * dtype.itemsize,), 0xFF, dtype=torch.uint8).view(dtype)
        outputs.append(unwritten if spec.aliased is None else inputs[spec.aliased])
    workspace = torch.full((made.workspace_bytes(shapes) + 256,), 0xFF, dtype=torch.uint8)
    kernels.memory = [*inputs, *outputs, workspace]
    assert all(x.is_contiguous() for x in kernels.memory)
    place = -(-workspace.data_ptr() // 256) * 256
    made.launch(gpu, shapes, [x.data_ptr() for x in inputs], [x.data_ptr() for x in outputs], place, 0)
    return [x.view(*shape) for x, shape in zip(outputs, output_shapes, strict=True)], kernels.launched


def let_the_interpreter_multiply_bfloat16() -> None:
    """Triton 3.7's interpreter keeps bfloat16 as its bits, and multiplies matrices of them as of integers."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    multiply = InterpreterBuilder.create_dot

    def widened(x: Any) -> Any:
        return TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def create_dot(self: Any, a: Any, b: Any, *others: Any) -> Any:
        if a.dtype.scalar == tl.bfloat16 and a.data.dtype == np.uint16:
            a, b = widened(a), widened(b)
        return multiply(self, a, b, *others)

    InterpreterBuilder.create_dot = create_dot


def let_the_interpreter_round_to_bfloat16() -> None:
    """Triton 3.7's interpreter cuts the lower bits of float32 off; GPUs round to the nearest."""
    import triton.language as tl
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def converted(x: Any, source: Any, target: Any, *others: Any) -> Any:
        if (source, target) == (tl.float32, tl.bfloat16):
            return torch.from_numpy(np.array(x)).bfloat16().view(torch.int16).numpy().view(np.uint16)
        return convert(x, source, target, *others)

    interpreter._convert_float = converted


def compiled_without_spills(wanted: KernelRequest, sm: int) -> Mapping[str, Any]:
    """The kernels, compiled as for engines: of what Triton has in its cache, the same code comes from there."""
    from llmc.convert.kernels.ahead_of_time import compile_kernel

    found = {name: compile_kernel(each, sm) for name, each in wanted.module().sources(wanted.shape, sm).items()}
    for name, kernel in found.items():
        assert kernel.description.stack_bytes == 0, name
    return found


def assert_close_in_all_rows(found: torch.Tensor, want: torch.Tensor, largest: float) -> None:
    """The error as a whole is less than `largest` of the norm, and no row is wrong among many that are right."""
    error = found.double() - want
    assert error.norm() < largest * want.norm()
    assert (error.norm(dim=1) < 2 * largest * want.norm(dim=1)).all()


def layouts_alone(wanted: KernelRequest, sms: Iterable[int]) -> KernelSet:
    """What plugins know without a kernel: how those for each SM would be launched."""
    layouts = {sm: asdict(wanted.module().layout_for(wanted.shape, sm)) for sm in sms}
    return kernel_set(wanted, {sm: CompiledKernels(layout, {}) for sm, layout in layouts.items()})
