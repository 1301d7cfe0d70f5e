#!/usr/bin/env python3
"""Whether an artifact's engines load and run on this GPU, and whether they still say what the original said.

    python ci/gpu/engine.py                       # builds recipes/quickstart.yaml first
    python ci/gpu/engine.py build/quickstart

Where no engine is for this GPU, the nearest is loaded nevertheless, in a process of its own, and what happens is told.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from device import here, require_gpu
from rich.console import Console

from llmc.errors import LlmcError

REPOSITORY = Path(__file__).parents[2]
DESERIALISE = """
import sys
from pathlib import Path
import tensorrt_rtx as trt
from llmc.runtime.plugins import tensorrt as plugins

engine, kernels = map(Path, sys.argv[1:])
if kernels.is_file():
    plugins.register(trt, kernels)
found = trt.Runtime(trt.Logger(trt.Logger.WARNING)).deserialize_cuda_engine(engine.read_bytes())
if found is None:
    sys.exit("deserialize_cuda_engine returned None")
context = found.create_execution_context()
sys.exit(None if context is not None else "create_execution_context returned None")
"""


def load_and_check(artifact: Path, console: Console) -> bool:
    from llmc.runtime import load

    try:
        with load(artifact, backend="tensorrt-rtx") as model:
            answer = model.generate("import ", max_new_tokens=32)
            console.print(f"{model.reason}: generated {answer.text!r}")
            report = model.check()
    except LlmcError as error:
        console.print(f"not run: {error}")
        return False
    console.print_json(json.dumps(report.to_json()))
    return all(gate.passed for gate in report.gates)


def try_another(artifact: Path, console: Console) -> None:
    """What happens to an engine that is for other GPUs."""
    described = sorted((artifact / "engines").glob("*.json"))
    chosen = max(described, key=lambda path: max(n for n in json.loads(path.read_text())["sm"] if n < 100))
    said = json.loads(chosen.read_text())
    kernels = chosen.with_name(said["kernels"] or "none")
    command = [sys.executable, "-c", DESERIALISE, str(chosen.with_suffix(".engine")), str(kernels)]
    done = subprocess.run(command, capture_output=True, text=True)
    told = done.stderr.strip().splitlines()[-3:]
    console.print(f"{chosen.stem}, for SM {said['sm']}, loaded on SM {here().sm}: exit code {done.returncode}")
    console.print("\n".join(told) if told else "and nothing was said")


def main() -> None:
    require_gpu(__file__)
    console = Console(width=120)
    with tempfile.TemporaryDirectory() as work:
        if len(sys.argv) > 1:
            artifact = Path(sys.argv[1])
        else:
            artifact = Path(work) / "quickstart"
            recipe = REPOSITORY / "recipes/quickstart.yaml"
            subprocess.run(["llmc", "build", recipe, "--output", artifact], check=True, stdout=subprocess.DEVNULL)
        sms = {n for path in (artifact / "engines").glob("*.json") for n in json.loads(path.read_text())["sm"]}
        console.print(f"engines for SM {', '.join(map(str, sorted(sms)))}; this GPU is SM {here().sm}")
        if here().sm not in sms:
            try_another(artifact, console)
        elif not load_and_check(artifact, console):
            sys.exit("the engine does not run, or misses a gate, on this GPU")


if __name__ == "__main__":
    main()
