"""The kernels of a model for all GPUs of its engines, compiled side by side."""

from __future__ import annotations

import hashlib
import importlib
import multiprocessing
import os
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from llmc.convert.kernels.ahead_of_time import Compiled, compile_kernel
from llmc.errors import InputError
from llmc.runtime.plugins.kernel_set import KernelSet, serves

CUBINS = (80, 86, 89, 90, 100, 103, 120, 121)


@dataclass(frozen=True)
class KernelRequest:
    """operation: as in `llmc.runtime.plugins`. shape: what its kernels depend on, a dataclass that JSON can hold."""

    operation: str
    shape: Any

    def module(self) -> Any:
        """That has `sources(shape, sm)` and `layout_for(shape, sm)`."""
        name = re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", "_", self.operation).lower()
        return importlib.import_module(f"llmc.convert.kernels.{name}")


@dataclass(frozen=True)
class CompiledKernels:
    """What one SM gets: kernels by name, and in `layout` what their launches depend on."""

    layout: dict[str, Any]
    kernels: dict[str, Compiled]


def cubin_sm(sm: int) -> int:
    """For which SM kernels are compiled that are to run on `sm`: itself, or an earlier one that serves it."""
    found = [each for each in CUBINS if serves(each, sm)]
    if not found:
        known = ", ".join(map(str, CUBINS))
        raise InputError(f"the plugins have kernels for SM {known}, not for SM {sm}; say `plugins: false`")
    return max(found)


def kernel_sets(
    wanted: Sequence[KernelRequest], sms: Sequence[int], progress: Callable[[float], None]
) -> list[KernelSet]:
    """One for each that is wanted, in their order. Takes a second or so for each kernel and SM, on one core."""
    tasks = [(each, sm) for each in dict.fromkeys(wanted) for sm in sorted(set(map(cubin_sm, sms)))]
    found: dict[KernelRequest, dict[int, CompiledKernels]] = defaultdict(dict)
    # New processes, not copies: this one has threads, and torch's memory.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(len(os.sched_getaffinity(0)), len(tasks)), context) as pool:
        for done, (each, sm, compiled) in enumerate(pool.map(_compiled, tasks)):
            found[each][sm] = compiled
            progress((done + 1) / len(tasks))
    return [kernel_set(each, found[each]) for each in wanted]


def kernel_set(wanted: KernelRequest, compiled: Mapping[int, CompiledKernels]) -> KernelSet:
    cubins: dict[str, bytes] = {}

    def stored(kernel: Compiled) -> dict[str, Any]:
        digest = hashlib.sha256(kernel.cubin).hexdigest()
        cubins[digest] = kernel.cubin
        return kernel.description.to_json() | {"cubin": digest}

    told = {
        "operation": wanted.operation,
        "shape": asdict(wanted.shape),
        "sm": {
            str(sm): {"layout": each.layout, "kernels": {name: stored(it) for name, it in each.kernels.items()}}
            for sm, each in sorted(compiled.items())
        },
    }
    return KernelSet(told, cubins.__getitem__)


def _compiled(task: tuple[KernelRequest, int]) -> tuple[KernelRequest, int, CompiledKernels]:
    wanted, sm = task
    sources = wanted.module().sources(wanted.shape, sm)
    layout = asdict(wanted.module().layout_for(wanted.shape, sm))
    return wanted, sm, CompiledKernels(layout, {name: compile_kernel(each, sm) for name, each in sources.items()})
