"""The other ranks' processes, where the first one starts them itself."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import llmc
from llmc.errors import MachineError
from llmc.runtime.distributed.place import Place

_HERE = Path(llmc.__file__).parents[1]
_PROGRAM = (
    "import sys; sys.path.append(sys.argv.pop(1)); from llmc.runtime.distributed.follower_process import main; main()"
)
_END = 10.0  # seconds that a process may take to end when it has nothing more to do


class Processes:
    """One for each rank but the first; each uses the GPU of its number."""

    def __init__(self, place: Place, artifact: Path, backend: str) -> None:
        self._process = os.getpid()
        self.running: dict[int, subprocess.Popen[bytes]] = {}
        for rank in range(1, place.ranks):
            there = replace(place, rank=rank, local_rank=rank)
            self.running[rank] = subprocess.Popen(
                # Nothing is imported from the current folder, which may be somebody else's.
                [sys.executable, "-P", "-c", _PROGRAM, str(_HERE), str(artifact), backend],
                env=os.environ | there.environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is the first one's affair
            )

    def require(self) -> None:
        """MachineError if one has ended before it was wanted."""
        for rank, process in self.running.items():
            if (code := process.poll()) is not None:
                how = f"signal {-code}" if code < 0 else f"exit code {code}"
                raise MachineError(f"rank {rank} of {len(self.running) + 1} ended before it began ({how})")

    def close(self) -> None:
        """Wait until they have ended, and end those that do not."""
        if os.getpid() != self._process:  # forked
            return
        for process in self.running.values():
            try:
                process.wait(_END)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.running.clear()
