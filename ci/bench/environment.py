"""Virtual environments of the tools that llmc is measured against."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from rich.console import Console

TORCH = "torch>=2.11,<2.14"


def interpreter(place: Path, *steps: list[str]) -> Path:
    """The Python of the virtual environment at `place`, which is made when it is not there.

    steps: what to install, one call of pip after the other: a later one then finds what it needs already there.
    """
    python = place / "bin" / "python"
    if not (place / "ready").exists():
        Console(stderr=True).print(f"installing {' '.join(steps[-1])} into {place}", highlight=False)
        subprocess.run([sys.executable, "-m", "venv", place], check=True)
        for requirements in steps:
            subprocess.run([python, "-m", "pip", "install", "-q", *requirements], check=True)
        (place / "ready").touch()
    return python
