"""Kernels of an artifact: cubins for several GPUs in one safetensors file, with what is needed to launch them.

The file's metadata hold as "llmc" a JSON list of kernel sets, `llmc.contracts.kernels.KernelSetDescription`. Each cubin
is a tensor of bytes under its SHA-256. The SHA-256 of a set names it, in an engine too, which so cannot meet other
kernels than those it was built with.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from llmc.errors import InputError, MachineError
from llmc.files import parse_json
from llmc.runtime.plugins.cubin import CubinKernel, KernelDescription

METADATA = "llmc"
EXACT = 90  # the first SM whose kernels are of one architecture alone, "sm_90a"


def serves(compiled: int, sm: int) -> bool:
    """Whether a GPU of compute capability `sm`, times ten, runs kernels that were compiled for another one.

    CUDA promises it within a generation, for a GPU that is newer. Triton uses what only one architecture has from SM 90
    on, and a driver loads such code there and nowhere else.
    """
    return compiled == sm or (sm < EXACT and compiled // 10 == sm // 10 and compiled < sm)


class KernelSet:
    """told: as in the file. cubin: the bytes of a SHA-256."""

    def __init__(self, told: dict[str, Any], cubin: Callable[[str], bytes]) -> None:
        self.told = told
        self.operation, self.shape = told["operation"], told["shape"]
        self._sm: dict[int, dict[str, Any]] = {int(sm): each for sm, each in told["sm"].items()}
        self._cubin = cubin
        self._loaded: dict[tuple[int, int, str], CubinKernel] = {}

    @property
    def key(self) -> str:
        return hashlib.sha256(json.dumps(self.told, sort_keys=True).encode()).hexdigest()

    @property
    def layouts(self) -> dict[int, dict[str, Any]]:
        """By the compute capability, times ten, that kernels were compiled for."""
        return {sm: each["layout"] for sm, each in self._sm.items()}

    def fitting(self, sm: int) -> int:
        """Which of them a GPU of SM `sm` runs: the nearest that serves it. MachineError if none does."""
        found = [each for each in self._sm if serves(each, sm)]
        if not found:
            known = ", ".join(map(str, sorted(self._sm)))
            raise MachineError(
                f"{self.operation}: its kernels are for SM {known}, this GPU is SM {sm}; build again with this SM"
            )
        return max(found)

    def layout(self, sm: int) -> dict[str, Any]:
        """Of the kernels that a GPU of SM `sm` runs. MachineError if there are none."""
        return self.layouts[self.fitting(sm)]

    def load(self, sm: int, device: int = 0) -> None:
        """All of them: loading may have to wait for the GPU, which a graph that is being captured does not allow."""
        for name in self._sm[self.fitting(sm)]["kernels"]:
            self.kernel(name, sm, device)

    def kernel(self, name: str, sm: int, device: int = 0) -> CubinKernel:
        """Loaded into the current context, which is that of the GPU number `device`, and kept."""
        fitting = self.fitting(sm)
        if (device, fitting, name) not in self._loaded:
            told = self._sm[fitting]["kernels"].get(name)
            if told is None:
                raise InputError(
                    f"{self.operation}: its kernels are of another release of llmc; build the engines again"
                )
            self._loaded[device, fitting, name] = CubinKernel(self._cubin(told["cubin"]), KernelDescription.of(told))
        return self._loaded[device, fitting, name]

    def part(self, name: str, operation: str, shape: dict[str, Any]) -> KernelSet:
        """What an operation that is a part of this one finds in it: its layout is called `name`, and names of its
        kernels begin with that.
        """
        return _Part(self, name, operation, shape)


class _Part(KernelSet):
    def __init__(self, whole: KernelSet, name: str, operation: str, shape: dict[str, Any]) -> None:
        super().__init__({"operation": operation, "shape": shape, "sm": whole._sm}, whole._cubin)
        self._whole, self._name = whole, name

    @property
    def layouts(self) -> dict[int, dict[str, Any]]:
        return {sm: layout[self._name] for sm, layout in self._whole.layouts.items()}

    def kernel(self, name: str, sm: int, device: int = 0) -> CubinKernel:
        return self._whole.kernel(f"{self._name}_{name}", sm, device)


def read(file: Path) -> dict[str, KernelSet]:
    """The sets of a file by their key; cubins are read when they are used. InputError if it is not such a file."""
    from llmc.contracts.kernels import KernelSets
    from llmc.contracts.part import checked

    try:
        with safe_open(file, "numpy") as opened:
            told = parse_json((opened.metadata() or {})[METADATA].encode())
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"{file}: no kernels of llmc ({error!r}); build or download the artifact again") from error
    described = checked(KernelSets, {"sets": told}, f"{file}: no kernels of llmc")
    sets = [KernelSet(each.to_json(), partial(_cubin, file)) for each in described.sets]
    return {each.key: each for each in sets}


def write(file: Path, sets: list[KernelSet]) -> None:
    import numpy as np

    cubins = {
        kernel["cubin"]: each._cubin(kernel["cubin"])
        for each in sets
        for compiled in each.told["sm"].values()
        for kernel in compiled["kernels"].values()
    }
    tensors = {digest: np.frombuffer(cubin, np.uint8) for digest, cubin in sorted(cubins.items())}
    metadata = {METADATA: json.dumps([each.told for each in sets], sort_keys=True)}
    file.write_bytes(save(tensors, metadata))  # small, and `save_file` would let nobody else read it


def _cubin(file: Path, digest: str) -> bytes:
    try:
        with safe_open(file, "numpy") as opened:
            cubin: bytes = opened.get_tensor(digest).tobytes()
    except (OSError, SafetensorError, TypeError) as error:  # no such tensor, or of a type that numpy does not know
        raise InputError(f"{file}: its kernels cannot be read ({error}); download it again") from error
    if hashlib.sha256(cubin).hexdigest() != digest:
        raise InputError(f"{file}: {digest[:16]}… is not the kernel that was built; download it again")
    return cubin
