"""What this machine has: memory and disk."""

from __future__ import annotations

import contextlib
import ctypes
import shutil
from pathlib import Path

import psutil

from llmc.errors import MachineError


def memory() -> int:
    """Bytes that a process may still take: free or reclaimable, within the limit of its control group."""
    available: int = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
    except (OSError, ValueError):  # no control groups, or "max"
        return available
    return min(available, max(0, limit - used))


def require_gpu() -> None:
    """MachineError when PyTorch finds none."""
    import torch

    if not torch.cuda.is_available():
        raise MachineError(
            f"--gpu-memory: PyTorch {torch.__version__} finds no CUDA GPU; leave the option out to work on the CPU, or "
            "install a CUDA build of PyTorch and a driver"
        )


def spare_memory() -> None:
    """Has freed memory given back to the system at once, where the C library is glibc: otherwise the allocator keeps
    about as much again as a build needs, in pieces. Costs up to half of the speed.
    """
    mmap_threshold, threshold = -3, 1 << 20  # M_MMAP_THRESHOLD of mallopt(3)
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(mmap_threshold, threshold)


def free_disk(path: Path) -> int:
    """Bytes free where `path` is or will be."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
