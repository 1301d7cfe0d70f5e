"""Writes a checkpoint as GGUF in float16, for llama.cpp's own quantizer, by llmc's target `gguf`.

llama.cpp's converter is a script of its repository, not of its package. Arguments: checkpoint, output (.gguf), and
`mtp` for a file with the MTP layer, which llama.cpp would keep in memory even when it does not draft.
"""

from __future__ import annotations

import sys
from pathlib import Path

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.targets.gguf import GgufOptions
from llmc.convert.targets.gguf.write import write


def convert(source: Path, output: Path, mtp: bool) -> None:
    options = GgufOptions(other="f16", floats="f16", mtp=mtp)
    write(Checkpoint.open(source), options, output, lambda *_: None)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:] == ["mtp"])
