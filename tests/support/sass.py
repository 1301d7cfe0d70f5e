"""What became of a kernel, in the GPU's own instructions, as nvdisasm, which comes with Triton, reads them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path


def innermost_loop(cubin: bytes, folder: Path, holding: str = "MMA") -> list[str]:
    """The instructions of the shortest loop with one that has `holding` in its name, as "HFMA2.BF16_V2"."""
    from triton import knobs

    file = folder / "kernel.cubin"
    file.write_bytes(cubin)
    command = [knobs.nvidia.nvdisasm.path, "-c", str(file)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: list[str] = []
    labels: dict[str, int] = {}
    loops = []
    for line in text.splitlines():
        if label := re.match(r"\s*(\.L_[x\d_]+):", line):
            labels[label[1]] = len(found)
        if instruction := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*);", line):
            found.append(instruction[1])
            target = re.search(r"`\((\.L_[x\d_]+)\)", instruction[2])
            if target and instruction[1].startswith("BRA") and target[1] in labels:  # backwards
                loops.append(found[labels[target[1]] :])
    return min((loop for loop in loops if any(holding in each for each in loop)), key=len)
