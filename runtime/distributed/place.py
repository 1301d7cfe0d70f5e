"""Which of several processes this one is, as launchers such as torchrun say it."""

from __future__ import annotations

import os
from dataclasses import dataclass

from llmc.errors import InputError

KEY = "LLMC_RANKS_KEY"


@dataclass(frozen=True)
class Place:
    """One process of several.

    Attributes:
        rank: Its number; the one of rank 0 answers, the others follow it.
        ranks: How many there are.
        local_rank: Its number on its machine, which is that of its GPU, as CUDA counts them.
        address: Where rank 0 waits for the others.
        port: The same.
        key: What the others have to know.
    """

    rank: int
    ranks: int
    local_rank: int
    address: str
    port: int
    key: bytes

    @classmethod
    def told(cls) -> Place | None:
        """Return what the environment says; None: this process is alone. InputError for what makes no sense."""
        ranks = _whole("WORLD_SIZE", 1)
        if ranks <= 1:
            return None
        rank = _whole("RANK")
        if not 0 <= rank < ranks:
            raise InputError(f"the environment says RANK={rank} and WORLD_SIZE={ranks}; ranks are counted from 0")
        # torchrun listens on MASTER_PORT itself, with a store for the programs that it starts.
        taken = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        key = os.environ.get(KEY) or os.environ.get("TORCHELASTIC_RUN_ID") or ""
        return cls(
            rank,
            ranks,
            _whole("LOCAL_RANK", rank),
            os.environ.get("MASTER_ADDR", "127.0.0.1"),
            _whole("MASTER_PORT") + taken,
            key.encode(),
        )

    def environment(self) -> dict[str, str]:
        """Return what `told` reads, for a process that is to be this one."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.ranks),
            "LOCAL_RANK": str(self.local_rank),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(self.port),
            KEY: self.key.decode(),
        }


def visible_gpus() -> int:
    """Return how many GPUs CUDA sees."""
    from cuda.bindings import runtime as cuda

    error, count = cuda.cudaGetDeviceCount()
    return int(count) if error == cuda.cudaError_t.cudaSuccess else 0


def _whole(name: str, default: int | None = None) -> int:
    value = os.environ.get(name)
    if value is None and default is not None:
        return default
    try:
        return int(value or "")
    except ValueError:
        said = "is missing" if value is None else f"is {value!r}"
        raise InputError(
            f"the environment names several processes, but {name} {said}; start them with torchrun"
        ) from None
