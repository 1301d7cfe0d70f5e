"""The communicator that the engines of several GPUs sum through, of NVIDIA's collective communications library."""

from __future__ import annotations

import ctypes
import importlib.util
from typing import Any

from llmc.errors import MachineError, MissingPackageError
from llmc.extras import install
from llmc.runtime.backends.cuda_device import call


def require() -> None:
    """Raise MissingPackageError if the library's package is not installed."""
    if importlib.util.find_spec("nccl") is None:
        raise MissingPackageError("NCCL, through which several GPUs sum, is not installed", install("nccl"))


def identifier() -> bytes:
    """Return a new communicator's, for all who are to be in it."""
    from nccl import core

    return bytes(core.get_unique_id().as_bytes)


class Communicator:
    """This process's part of one, on a GPU. It comes to be when all ranks make theirs."""

    def __init__(self, rank: int, ranks: int, identifier: bytes, device: int) -> None:
        from cuda.bindings import runtime as cuda
        from nccl import core

        current = call(cuda, "cudaGetDevice")
        call(cuda, "cudaSetDevice", device)
        try:
            self._communicator = core.Communicator.init(ranks, rank, core.UniqueId.from_bytes(identifier))
        finally:
            call(cuda, "cudaSetDevice", current)

    def give_to(self, context: Any) -> None:
        """Let an engine's context sum through it. All ranks do so at the same time."""
        made = ctypes.pythonapi.PyCapsule_New
        made.restype, made.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        if not context.set_communicator(made(self._communicator.ptr, None, None)):
            raise MachineError("the engine takes no communicator; its reason is on standard error")

    def abort(self) -> None:
        """End what is under way: a sum that waits for a rank that is gone. Its work fails then."""
        self._communicator.abort()

    def close(self) -> None:
        self._communicator.destroy()
