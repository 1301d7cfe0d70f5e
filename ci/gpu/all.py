#!/usr/bin/env python3
"""All checks of this folder, one after the other, and what came of them; a failure does not end the others.

    PYTHONPATH=. python ci/gpu/all.py                   # from a source tree, with nothing of it installed
    python ci/gpu/all.py --artifact build/my-model      # for engine.py; otherwise the quickstart recipe is built
    python ci/gpu/all.py --only latent_attention mixture_of_experts

The kernels and the solver need torch, Triton and cuda-bindings; a step that lacks a package is skipped with a line.
What came of a run, tables and all, is written to ci/gpu/results/ under the GPU's name; the documentation shows it.

Exit codes: 0, no check failed; 1, one did; 4, there is no GPU.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from this_gpu import KEPT, console, current, require_gpu, title

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
RESULTS = FOLDER / "results"
QUICKSTART = ROOT / "build" / "quickstart"
CHECKS = ("gptq", "latent_attention", "grouped_query_attention", "mixture_of_experts", "linear", "engine")
VERDICTS = {0: "passed", 5: "no engine is for this GPU"}  # by exit code; 5 is engine.py's
KERNELS = ("triton", "cuda.bindings")
PACKAGES = ("pydantic", "onnx_ir", "onnxruntime", "tokenizers", "typer")  # of the whole of llmc
NEEDS = {  # modules, by check
    "gptq": ("triton",),
    "latent_attention": KERNELS,
    "grouped_query_attention": KERNELS,
    "mixture_of_experts": KERNELS,
    "linear": KERNELS,
    "build": (*PACKAGES, *KERNELS, "tensorrt_rtx"),
    "engine": (*PACKAGES, *KERNELS, "tensorrt_rtx"),
}
ARGUMENTS = {"gptq": ("--experts", "32")}  # enough to time them; a whole layer takes minutes without the kernel
LIMIT = 300  # seconds of a check


def commands(only: list[str], artifact: str | None) -> dict[str, list[str]]:
    """What is run, by name; the artifact is built where engine.py needs one."""
    scripts = {name: [sys.executable, str(FOLDER / f"{name}.py"), *ARGUMENTS.get(name, ())] for name in only}
    if "engine" not in only:
        return scripts
    build = {} if artifact else {"build": [sys.executable, "-m", "llmc.cli", "build", "recipes/quickstart.yaml"]}
    scripts["engine"].append(artifact or str(QUICKSTART))
    return build | scripts


def missing(check: str) -> str | None:
    """A module that it needs and that is not there."""
    for name in NEEDS[check]:
        try:
            if importlib.util.find_spec(name) is None:
                return name
        except ModuleNotFoundError:  # of the package that it is in
            return name
    return None


def verdict(code: int | None) -> str:
    """code: None: the time was up."""
    if code is None:
        return f"FAILED, not done after {LIMIT} s"
    return VERDICTS.get(code, f"FAILED, exit code {code}")


def run(command: list[str], tables: Path) -> int | None:
    environment = os.environ | {KEPT: str(tables)}
    try:
        return subprocess.run(command, cwd=ROOT, env=environment, timeout=LIMIT, check=False).returncode
    except subprocess.TimeoutExpired:
        return None


def about() -> dict[str, Any]:
    """The machine and its software."""
    return {
        "gpu": torch.cuda.get_device_name(),
        "sm": current().sm,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": importlib.metadata.version("triton") if importlib.util.find_spec("triton") else None,
        "cuda": torch.version.cuda,
    }


def keep(result: dict[str, Any]) -> Path:
    """The file is named after the GPU: a later run on the same kind takes its place."""
    file = RESULTS / (re.sub(r"[^a-z0-9]+", "-", result["gpu"].lower()).strip("-") + ".json")
    RESULTS.mkdir(exist_ok=True)
    file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", help="for engine.py; by default the quickstart recipe is built")
    parser.add_argument("--only", nargs="+", choices=CHECKS, default=list(CHECKS))
    arguments = parser.parse_args()
    require_gpu("all.py")
    artifact = arguments.artifact and str(Path(arguments.artifact).resolve())
    table, checks = Table("check", "seconds", "result", title=title()), list[dict[str, Any]]()
    for name, command in commands(arguments.only, artifact).items():
        console.rule(name)
        start, tables = time.perf_counter(), list[Any]()
        if (lacking := missing(name)) is not None:
            said = f"skipped: {lacking} is not installed"
        else:
            with tempfile.TemporaryDirectory() as folder:
                code = run(command, file := Path(folder, "tables"))
                tables = [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.exists() else []
            said = verdict(code)
        checks.append({"check": name, "seconds": round(time.perf_counter() - start), "result": said, "tables": tables})
        table.add_row(name, str(checks[-1]["seconds"]), said)
    console.print(table)
    console.print(f"written: {keep(about() | {'checks': checks}).relative_to(ROOT)}", highlight=False)
    raise SystemExit(1 if any(each["result"].startswith("FAILED") for each in checks) else 0)


if __name__ == "__main__":
    main()
