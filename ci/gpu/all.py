#!/usr/bin/env python3
"""Everything that needs a GPU, in one go: builds, checks and times; says at the end what failed.

    pip install -e '.[quickstart]' && python ci/gpu/all.py [ARTIFACT]

With torch for CUDA, not the one for the CPU.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from device import require_gpu

CHECKS = ("latent_attention.py", "mixture_of_experts.py", "gptq.py", "engine.py")


def main() -> None:
    require_gpu(__file__)
    failed = []
    for name in CHECKS:
        print(f"\n== {name}", flush=True)
        arguments = sys.argv[1:] if name == "engine.py" else []
        if subprocess.run([sys.executable, Path(__file__).with_name(name), *arguments]).returncode:
            failed.append(name)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")
    print("\nall checks passed")


if __name__ == "__main__":
    main()
