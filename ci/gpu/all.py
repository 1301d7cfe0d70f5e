#!/usr/bin/env python3
"""All checks of this folder, one after the other, and what came of them; a failure does not end the others.

    python ci/gpu/all.py                                # builds the quickstart artifact for engine.py first
    python ci/gpu/all.py --artifact build/my-model
    python ci/gpu/all.py --only latent_attention mixture_of_experts

Exit codes: 0, no check failed; 1, one did; 4, there is no GPU.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from rich.table import Table
from this_gpu import console, require_gpu, title

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
QUICKSTART = ROOT / "build" / "quickstart"
CHECKS = ("gptq", "latent_attention", "mixture_of_experts", "engine")
VERDICTS = {0: "passed", 5: "no engine is for this GPU"}  # by exit code; 5 is engine.py's


def commands(only: list[str], artifact: str | None) -> dict[str, list[str]]:
    """What is run, by name; the artifact is built where engine.py needs one."""
    scripts = {name: [sys.executable, str(FOLDER / f"{name}.py")] for name in only}
    if "engine" not in only:
        return scripts
    build = {} if artifact else {"build": [sys.executable, "-m", "llmc.cli", "build", "recipes/quickstart.yaml"]}
    scripts["engine"].append(artifact or str(QUICKSTART))
    return build | scripts


def verdict(code: int) -> str:
    return VERDICTS.get(code, f"FAILED, exit code {code}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", help="for engine.py; by default the quickstart recipe is built")
    parser.add_argument("--only", nargs="+", choices=CHECKS, default=list(CHECKS))
    arguments = parser.parse_args()
    require_gpu("all.py")
    artifact = arguments.artifact and str(Path(arguments.artifact).resolve())
    table, failed = Table("check", "seconds", "result", title=title()), False
    for name, command in commands(arguments.only, artifact).items():
        console.rule(name)
        start = time.perf_counter()
        code = subprocess.run(command, cwd=ROOT, check=False).returncode
        failed |= code not in VERDICTS
        table.add_row(name, f"{time.perf_counter() - start:.0f}", verdict(code))
    console.print(table)
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
