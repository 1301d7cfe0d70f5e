"""Compiles one ONNX file into one engine; run by `compiler.py` as a process of its own.

The library can end its process on a graph it does not like, so the build must not be that process. Nothing is imported
here but the compiler, whose module is the argument, and the plugins, if there are any. The request is one line of
JSON on standard input, events are such lines on standard output; what the library prints goes to standard error.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, BinaryIO

trt: Any = importlib.import_module(sys.argv[1])

# Said at every error on a machine without a GPU, and never the reason.
NO_DRIVER = "CUDA driver version is insufficient"


def main() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: never outlive the build
    events = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)

    def send(**event: Any) -> None:
        events.write(json.dumps(event) + "\n")

    request = json.loads(sys.stdin.readline())
    logger = Logger()
    failures: list[str] = []  # of plugins
    if request["kernels"]:
        from llmc.runtime.plugins import tensorrt as plugins

        plugins.register(trt, Path(request["kernels"]))
        failures = plugins.failures
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(request["onnx"]):
        error = parser.get_error(0)
        said = " ".join(line.strip() for line in error.desc().splitlines() if NO_DRIVER not in line)
        reason = failures[0] if failures else f"{error.func()}: {said}"
        send(event="refused", node=error.node_name() or error.node_operator(), reason=reason)
        return
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # routers are float32 because they must be exact
    config.set_preview_feature(trt.PreviewFeature.ALIASED_PLUGIN_IO_10_03, True)  # FP8 caches are written in place
    # No memory is asked for in the middle of a step, which could not be captured as a CUDA graph then.
    if own_memory := getattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION", None):
        config.set_flag(own_memory)
    config.progress_monitor = monitor = Monitor(send)
    if targets := request["sm"]:
        config.num_compute_capabilities = len(targets)
    for i, sm in enumerate(targets):
        capability = getattr(trt.ComputeCapability, f"SM{sm}", None)
        if capability is None or not config.set_compute_capability(capability, i):
            send(event="refused", node="", reason=f"this compiler does not compile for SM{sm}")
            return
    for shapes in request["profiles"]:
        profile = builder.create_optimization_profile()
        for name, (least, usual, most) in shapes.items():
            profile.set_shape(name, least, usual, most)
        if config.add_optimization_profile(profile) < 0:
            send(event="refused", node="", reason=logger.reason or f"invalid profile {shapes}")
            return
    with open(request["engine"], "wb") as file:  # noqa: PTH123 (no import that is not needed)
        built = builder.build_serialized_network_to_stream(network, config, Writer(file))
    if not built:
        send(event="refused", node="", reason=next(iter(failures), logger.reason) or "no reason given")
        return
    del monitor
    send(
        event="built",
        version=trt.__version__,
        inputs=[_io(network.get_input(i)) for i in range(network.num_inputs)],
        outputs=[_io(network.get_output(i)) for i in range(network.num_outputs)],
    )


def _io(tensor: Any) -> dict[str, Any]:
    return {"name": tensor.name, "dtype": tensor.dtype.name.lower(), "shape": list(tensor.shape)}


class Logger(trt.ILogger):
    """Keeps the first error that says something."""

    def __init__(self) -> None:
        super().__init__()
        self.reason = ""

    def log(self, severity: Any, message: str) -> None:
        if severity > trt.ILogger.ERROR:
            return
        print(message, file=sys.stderr, flush=True)
        if not self.reason and NO_DRIVER not in message:
            self.reason = " ".join(message.split())


class Writer(trt.IStreamWriter):
    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self.file = file

    def write(self, data: bytes) -> int:
        return self.file.write(data)


class Monitor(trt.IProgressMonitor):
    """Sends how much of the outermost phase is done."""

    def __init__(self, send: Any) -> None:
        super().__init__()
        self.send = send
        self.outermost: tuple[str, int] | None = None

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        if parent_phase is None:
            self.outermost = (phase_name, num_steps)

    def step_complete(self, phase_name: str, step: int) -> bool:
        if self.outermost and self.outermost[0] == phase_name:
            self.send(event="progress", fraction=min(1.0, (step + 1) / max(1, self.outermost[1])))
        return True

    def phase_finish(self, phase_name: str) -> None:
        """Required by the interface; the next phase says all there is to say."""


if __name__ == "__main__":
    main()
