"""Triton kernels compiled without a GPU: a cubin for one SM, and what a launcher has to know about it."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmc.runtime.plugins.cubin import ALIGNMENT, KernelDescription

# Bytes of shared memory that a block may have (CUDA C++ Programming Guide, "Technical Specifications per Compute
# Capability").
SHARED_LIMIT = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10}
SHARED_LIMIT |= {90: 227 << 10, 100: 227 << 10, 103: 227 << 10, 120: 99 << 10, 121: 99 << 10}
TENSOR_MEMORY_COLUMNS = 512  # sm_100 and sm_103; Triton asks for more without a word, and such a kernel does nothing


@dataclass(frozen=True)
class Compiled:
    """A kernel, and what `llmc.runtime.plugins.cubin` has to know to launch it."""

    cubin: bytes
    description: KernelDescription


@dataclass(frozen=True)
class KernelSource:
    """A kernel and what it is compiled for.

    Attributes:
        kernel: a `triton.jit` function
        types: of its arguments that are no constants; may name others too
        constants: values of the others
        multiples: numbers that are multiples of 16, as all addresses are
        registers: that a thread may have; None: as the compiler finds best, which may be too few, with spills
    """

    kernel: Any
    types: Mapping[str, str]
    constants: Mapping[str, Any]
    warps: int = 4
    stages: int = 1
    multiples: tuple[str, ...] = ()
    registers: int | None = None


def compile_kernel(source: KernelSource, sm: int) -> Compiled:
    import triton
    from triton import knobs
    from triton.backends.compiler import GPUTarget

    constants = dict(source.constants)
    signature = {name: "constexpr" if name in constants else source.types[name] for name in source.kernel.arg_names}
    arguments = {name: kind for name, kind in signature.items() if kind != "constexpr"}
    aligned = {
        (index,): [["tt.divisibility", ALIGNMENT]]
        for index, (name, kind) in enumerate(signature.items())
        if kind[0] == "*" or name in source.multiples
    }
    parsed = triton.compiler.ASTSource(source.kernel, signature, constants, aligned)
    options = {"num_warps": source.warps, "num_stages": source.stages, "maxnreg": source.registers}
    with knobs.compilation.scope():
        knobs.compilation.disable_line_info = True  # which would write this machine's paths into the cubin
        made = triton.compile(parsed, GPUTarget("cuda", sm, 32), options)
    found = made.metadata
    if found.shared > SHARED_LIMIT[sm] or getattr(found, "tmem_size", 0) > TENSOR_MEMORY_COLUMNS:
        raise ValueError(f"{found.name}: SM {sm} has {SHARED_LIMIT[sm]} bytes of shared memory, not {found.shared}")
    if found.global_scratch_size or found.profile_scratch_size or found.num_ctas != 1 or found.launch_pdl:
        raise ValueError(f"{found.name}: needs scratch memory, clusters or dependent launches, which no launcher gives")
    cubin = made.asm["cubin"]
    registers, stack_bytes = _resources(cubin)
    description = KernelDescription(
        name=found.name,
        sm=sm,
        threads=32 * source.warps,
        shared_bytes=found.shared,
        alignment=ALIGNMENT,
        arguments=arguments,
        # Triton's own launcher ends with the addresses of two scratch memories, null where there are none.
        null_pointers=2,
        registers=registers,
        stack_bytes=stack_bytes,
    )
    return Compiled(cubin, description)


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers and stack bytes of a thread, as NVIDIA's cuobjdump, which comes with Triton, reads them."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    ((registers, stack_bytes),) = re.findall(r"REG:(\d+) STACK:(\d+)", told)
    return int(registers), int(stack_bytes)
