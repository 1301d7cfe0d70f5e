"""What this machine has: memory and disk."""

from __future__ import annotations

import shutil
from pathlib import Path

import psutil


def memory() -> int:
    """Bytes that a process may still take: free or reclaimable, within the limit of its control group."""
    available: int = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
    except (OSError, ValueError):  # no control groups, or "max"
        return available
    return min(available, max(0, limit - used))


def free_disk(path: Path) -> int:
    """Bytes free where `path` is or will be."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
