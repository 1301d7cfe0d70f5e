#!/usr/bin/env python3
"""Does an engine of an artifact load and run on this GPU, and does it say what the original said?

    python ci/gpu/engine.py build/quickstart
    python ci/gpu/engine.py build/quickstart --backend tensorrt

The engine that is for this GPU runs the artifact's check and answers a prompt. Where none is, two things are tried for
the record: to run those for other GPUs as if they were for this one, the nearest first, and to compile a small engine
here. Kernels of plugins that were not compiled for this GPU may stop the former where TensorRT would not. TensorRT ends
processes at times, so every attempt is a process of its own, and its end is reported.

Exit codes: 0, it runs and passes; 1, it does not; 4, there is no GPU; 5, no engine is for this GPU.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import subprocess
import sys
import tempfile
from typing import Any

import torch
from rich.table import Table
from this_gpu import DEVICE, console, current, require_gpu, show, title

from llmc.errors import LlmcError
from llmc.runtime import load
from llmc.runtime.artifact import Artifact
from llmc.runtime.backends import backends, cuda_device
from llmc.runtime.backends.tensorrt_engine import EngineBackend
from llmc.tensorrt_package import TENSORRT, TENSORRT_RTX

PROMPT = "def "
NOT_FOR_THIS_GPU = 5
COMPILE = "compile"  # an attempt; others are an SM to run the engine of


def run_as(artifact: str, backend: str, sm: int) -> int:
    """Loads, checks and asks, taking the GPU for one of SM `sm`; prints each step before it is done."""
    cuda_device.compute_capability = lambda device=None: sm
    print(f"  loading the engine for SM {sm} …", flush=True)
    with load(artifact, backend=backend) as model:
        print("  loaded; checking …", flush=True)
        report = model.check()
        verdict = "passed" if report.passed else "FAILED"
        print(
            f"  check {verdict}: {report.tokens:,} tokens, KL {report.kl_mean:.4f} ({report.kl_kind}), "
            f"top-1 agreement {report.top1:.2%}, perplexity {report.ppl_original:.3f} → {report.ppl:.3f}; generating …",
            flush=True,
        )
        answer = model.generate(PROMPT, max_new_tokens=48)
        print(f"  {PROMPT!r} → {answer.text!r}, {answer.accepted} of {answer.drafted} drafts accepted", flush=True)
        if isinstance(model.backend, EngineBackend):
            for steps, found in model.backend.capturable().items():
                print(
                    f"  {'can be captured as CUDA graphs' if found else 'CANNOT be captured as CUDA graphs'}: {steps}",
                    flush=True,
                )
    return 0 if report.passed else 1


def compile_here(backend: str) -> int:
    """An engine for the current GPU that multiplies two matrices: compiled, loaded, and run."""
    package = next(known for known in (TENSORRT, TENSORRT_RTX) if known.name == backend)
    trt: Any = importlib.import_module(package.module)
    builder = trt.Builder(logger := trt.Logger(trt.Logger.WARNING))
    network, config = builder.create_network(0), builder.create_builder_config()
    x = network.add_input("x", trt.float32, (64, 64))
    product = network.add_matrix_multiply(x, trt.MatrixOperation.NONE, x, trt.MatrixOperation.NONE).get_output(0)
    product.name = "product"
    network.mark_output(product)
    if package.jit:  # which would compile for several generations, not for this GPU
        config.num_compute_capabilities = 1
        known = config.set_compute_capability(trt.ComputeCapability.CURRENT, 0)
        print(f"  the compiler {'takes' if known else 'does not take'} this GPU for a target", flush=True)
    print(f"  {trt.__name__} {trt.__version__} compiles x @ x …", flush=True)
    made = builder.build_serialized_network(network, config)
    print("  refused" if made is None else f"  {made.nbytes:,} bytes; loading …", flush=True)
    engine = made and trt.Runtime(logger).deserialize_cuda_engine(made)
    context = engine and engine.create_execution_context()
    if not context:
        print("  not loaded")
        return 1
    print("  loaded; running …", flush=True)
    given = torch.randint(-4, 5, (64, 64), device=DEVICE).float()
    found = torch.full_like(given, torch.nan)
    context.set_tensor_address("x", given.data_ptr())
    context.set_tensor_address("product", found.data_ptr())
    enqueued = context.execute_async_v3(torch.cuda.current_stream().cuda_stream)
    torch.cuda.synchronize()
    right = bool(enqueued) and torch.equal(found, (given.double() @ given.double()).float())
    print(f"  its product is {'right' if right else 'wrong'}")
    return 0 if right else 1


def attempt(arguments: argparse.Namespace, what: str) -> int:
    """In a process of its own, whose kernels are not kept; its exit code, the number of a signal being negative."""
    command = [sys.executable, "-X", "faulthandler", __file__, arguments.artifact, "--backend", arguments.backend]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([*command, "--attempt", what], env=os.environ | {"XDG_CACHE_HOME": folder}, check=False)
    code = done.returncode
    console.print(f"  ended by {signal.Signals(-code).name}" if code < 0 else f"  exit code {code}", highlight=False)
    return code


def engines(artifact: Artifact, backend: str) -> list[dict[str, Any]]:
    """What is told of each."""
    files = artifact.target_files(backend).values()
    return [artifact.read_json(file) for file in files if file.endswith(".json")]


def nearest(sm: int, groups: set[tuple[int, ...]]) -> list[int]:
    """Of each group of GPUs that share an engine one, the nearest of all first; the older of two that are as near."""

    def distance(each: int) -> tuple[int, int]:
        return abs(each - sm), each

    return sorted((min(group, key=distance) for group in groups), key=distance)


def report(arguments: argparse.Namespace) -> int:
    sm, artifact = current().sm, Artifact.open(arguments.artifact)
    found = engines(artifact, arguments.backend)
    table = Table("engine", "graph", "SM", "release", "for this GPU", title=title(f"SM {sm}", arguments.backend))
    for each in found:
        row = (each["engine"], each["graph"], ", ".join(map(str, each["sm"])), each.get("release", "unknown"))
        table.add_row(*row, "yes" if sm in each["sm"] else "no")
    show(table)
    groups = {tuple(each["sm"]) for each in found}
    if not groups:
        print(f"{arguments.artifact} has no engines for {arguments.backend}", file=sys.stderr)
        return 1
    if any(sm in group for group in groups):
        print(f"the engine for SM {sm}:", flush=True)
        return min(1, abs(attempt(arguments, str(sm))))
    print(f"no engine is for SM {sm}: {backends.get(arguments.backend).unavailable(artifact)}")
    outcomes = list[str]()
    for other in nearest(sm, groups):
        print(f"that for SM {other}, as if it were for SM {sm}:", flush=True)
        ran = attempt(arguments, str(other)) == 0
        outcomes.append(f"the engine for SM {other} {'runs' if ran else 'does not run'}")
    print(f"an engine compiled on this GPU by {arguments.backend}:", flush=True)
    made = attempt(arguments, COMPILE) == 0
    print(f"SM {sm}: {', '.join(outcomes)}, one compiled here {'runs' if made else 'does not run'}")
    return NOT_FOR_THIS_GPU


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", help="a directory that `llmc build` made")
    parser.add_argument("--backend", default="tensorrt-rtx", choices=("tensorrt-rtx", "tensorrt"))
    parser.add_argument("--attempt", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    try:
        if arguments.attempt == COMPILE:
            raise SystemExit(compile_here(arguments.backend))
        if arguments.attempt:
            raise SystemExit(run_as(arguments.artifact, arguments.backend, int(arguments.attempt)))
        require_gpu("engine.py")
        raise SystemExit(report(arguments))
    except LlmcError as error:
        print(error, file=sys.stderr)
        raise SystemExit(error.exit_code) from error


if __name__ == "__main__":
    main()
